"""docs/faq.rst quotes the messages that skdml gives."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from skorch.callbacks import EarlyStopping, LRScheduler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import skdml
from skdml import RAWEmbedder, RecallAtK, recall_at_k

FAQ = (Path(__file__).parents[1] / "docs" / "faq.rst").read_text(encoding="utf-8")
QUOTES = re.findall(
    r'"(.+?)"(?=, "|$)', "\n".join(re.findall(r'^\*\*(".*")\*\*$', FAQ, flags=re.MULTILINE)), re.MULTILINE
)
OF_OTHER_PACKAGES = [
    "to_onnx needs",
    "needs the package timm",
    "needs pooch",
]  # tested with the functions that need them

X = np.random.default_rng(0).normal(size=(30, 4))
Y = np.arange(30) % 3


def fit(X=X, y=Y, **parameters):
    parameters = {"max_epochs": 1, "batch_size": 8, "random_state": 0, **parameters}
    return RAWEmbedder(**parameters).fit(X, y)


def fit_images_of_two_sizes(folder):
    paths = [folder / f"{i}.png" for i in range(8)]
    for i, path in enumerate(paths):
        Image.fromarray(np.zeros((8 + i, 8, 3), dtype=np.uint8)).save(path)
    fit(paths, Y[:8], resize=None, crop_size=None)


def load_without_its_backbone(folder):
    fit(backbone=nn.Linear(4, 4)).save(folder / "embedder")
    skdml.load(folder / "embedder")


def images_better_untrained(folder):
    """Fit a network from random weights on noise, of which each class has a pattern of its own."""
    rng = np.random.default_rng(0)
    patterns = np.repeat(rng.integers(0, 200, size=(40, 8, 8)), 4, axis=0)
    images = (patterns + rng.integers(0, 56, size=(160, 8, 8))).astype(np.uint8)
    fit(images, np.repeat(np.arange(40), 4), early_stopping=True, validation_split="classes", validation_fraction=0.5)


def too_high_a_rate(folder):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 12
    X = rng.normal(size=(12, 8))[y] + rng.normal(size=(60, 8)) / 2
    fit(X, y, early_stopping=True, validation_split="classes", validation_fraction=0.4, learning_rate=1.0)


def collapse(folder):
    y = np.random.default_rng(1).permutation(Y)
    parameters = {"mining": "hard", "learning_rate": 3e-2, "max_epochs": 40, "learned_share": 1, "batch_size": 30}
    skdml.TripletEmbedder(**parameters, random_state=0).fit(X, y)


class Tuple(nn.Module):
    def forward(self, X):
        return X, X


class NotFinite(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, X):
        return super().forward(X) * float("nan")


MISTAKES = [
    lambda folder: fit(y=np.arange(30)),
    lambda folder: fit(y=np.zeros(30)),
    lambda folder: fit(y=X[:, 0]),
    lambda folder: fit(y=[None, None, *Y[2:]]),
    lambda folder: fit(y=[Y]),
    lambda folder: fit(y=["0", *Y[1:]]),
    lambda folder: fit(np.zeros((30, 8, 8))),
    lambda folder: fit(np.zeros((30, 3, 8, 8), dtype=np.uint8)),
    lambda folder: fit(np.zeros((30, 8, 8, 3))),
    fit_images_of_two_sizes,
    lambda folder: fit(str(folder)),
    lambda folder: fit(DataLoader(TensorDataset(torch.zeros(30, 4)))),
    lambda folder: fit([[1, 2], [3]] * 15),
    lambda folder: fit(["no such file.png"] * 30),
    lambda folder: fit(np.zeros((30, 8, 8), dtype=np.uint8)).transform(X),
    lambda folder: fit(np.full((30, 4), np.nan)),
    lambda folder: fit(learning_rate=1e30),
    lambda folder: skdml.NormSoftmaxEmbedder(max_epochs=1, batch_size=8, backbone=NotFinite()).fit(X, Y),
    collapse,
    lambda folder: fit().transform(X * 1e30),
    lambda folder: skdml.NormSoftmaxEmbedder(batch_size=2, backbone=nn.BatchNorm1d(4)).fit(X[:5], Y[:5]),
    lambda folder: fit(batch_size=64),
    lambda folder: fit(batch_size=6),
    lambda folder: fit(X[:9], Y[:9], early_stopping=True),
    lambda folder: fit(early_stopping=True, validation_split="classes"),
    too_high_a_rate,
    images_better_untrained,
    lambda folder: fit(X * [1, 1, 1, 100]),
    lambda folder: fit(callbacks=[EarlyStopping()]),
    lambda folder: fit(callbacks=[LRScheduler("StepLR", step_size=1)], lr_schedule="one_cycle"),
    lambda folder: fit(backbone=Tuple()),
    lambda folder: fit(backbone=nn.Identity(), n_components=None),
    lambda folder: fit(device="cuda:99"),
    lambda folder: recall_at_k(X[:3], [0, 0, 1]),
    lambda folder: RecallAtK(1)(LogisticRegression().fit(X, Y), X, Y),
    load_without_its_backbone,
]


@pytest.fixture(scope="module")
def messages(tmp_path_factory):
    """Return what the mistakes give, errors and warnings."""
    given = []
    for mistake in MISTAKES:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="The number of unique classes")  # scikit-learn's guess
            with pytest.raises((ValueError, TypeError, UserWarning)) as caught:
                mistake(tmp_path_factory.mktemp("mistake"))
        given.append(str(caught.value))
    return given


@pytest.mark.parametrize("quote", [q for q in QUOTES if not any(other in q for other in OF_OTHER_PACKAGES)])
def test_quoted_message_is_given(quote, messages):
    # The numbers are those of an example, and dots stand for what was left out.
    pattern = re.sub(r"\d+", r"\\d+", re.escape(quote).replace(re.escape("..."), ".*"))
    assert any(re.search(pattern, message, flags=re.DOTALL) for message in messages), messages


def test_every_mistake_is_in_the_manual():
    assert len(QUOTES) - len(OF_OTHER_PACKAGES) >= len(MISTAKES)
