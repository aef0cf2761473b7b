"""An embedder for any loss: copies it, trains what it learns, passes it what a miner finds."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from skdml import MetricEmbedder, RAWEmbedder, SoftTripleEmbedder, SSTEmbedder
from skdml.losses import RAWLoss, SoftTripleLoss, SSTLoss

# A few dozen rows.
pytestmark = pytest.mark.filterwarnings("ignore:batch_size=.* is larger than the:UserWarning")


def contrast(embeddings, y):
    same = y[:, None] == y
    return (torch.where(same, -1, 1) * (embeddings @ embeddings.T)).mean()


class FirstPairs(nn.Module):
    """A loss in the form of pytorch-metric-learning: (embeddings, y, indices of anchors and positives)."""

    def forward(self, embeddings, y, pairs):
        anchor, positive = pairs
        return (embeddings[anchor] - embeddings[positive]).square().sum(dim=1).mean()


def miner(embeddings, y):
    return (y[:, None] == y).triu(1).nonzero(as_tuple=True)


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({}, RAWEmbedder()),
        ({"loss": RAWLoss(alpha=3.0)}, RAWEmbedder(alpha=3.0)),
        ({"loss": SSTLoss(), "batches": "local", "batch_size": 20}, SSTEmbedder(batch_size=20)),
    ],
    ids=["default", "RAW", "SST"],
)
def test_equals_the_embedder_of_the_loss(blobs, settings, same):
    X, y = blobs
    embedder = MetricEmbedder(max_epochs=3, random_state=0, **settings).fit(X, y)
    same.set_params(max_epochs=3, random_state=0).fit(X, y)
    np.testing.assert_array_equal(embedder.transform(X), same.transform(X))


def test_parameters_of_the_loss_are_trained_at_their_own_rate(blobs):
    X, y = blobs
    loss = SoftTripleLoss(4, 64)
    before = loss.centers.detach().clone()
    embedder = MetricEmbedder(loss=loss, batches="shuffled", max_epochs=2, random_state=0).fit(X, y)
    assert not torch.equal(embedder.criterion_.centers, before)
    assert torch.equal(loss.centers, before)
    still = embedder.set_params(loss_learning_rate=1e-12, weight_decay=0.0).fit(X, y)
    torch.testing.assert_close(still.criterion_.centers, before)
    assert SoftTripleEmbedder(max_epochs=2, random_state=0).fit(X, y).centers_.shape == before.shape


def test_function(blobs):
    X, y = blobs
    embedder = MetricEmbedder(loss=contrast, max_epochs=10, random_state=0).fit(X, y)
    assert embedder.score(X, y) > 0.9
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).transform(X), embedder.transform(X))


def test_miner_hands_the_loss_its_pairs(blobs):
    X, y = blobs
    embedder = MetricEmbedder(loss=FirstPairs(), miner=miner, max_epochs=5, random_state=0).fit(X, y)
    assert embedder.history_[-1]["loss"] < embedder.history_[0]["loss"]
    assert isinstance(embedder.criterion_, FirstPairs)


def test_losses_of_pytorch_metric_learning(blobs):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    X, y = blobs
    for settings in (
        {"loss": losses.MultiSimilarityLoss(), "miner": miners.MultiSimilarityMiner()},
        {"loss": losses.ProxyAnchorLoss(4, 64), "batches": "shuffled"},
    ):
        assert MetricEmbedder(max_epochs=10, random_state=0, **settings).fit(X, y).score(X, y) > 0.9


def test_small_shuffled_batches_need_no_samples_per_class(blobs):
    settings = {"batch_size": 5, "max_epochs": 1, "samples_per_class": 8}
    MetricEmbedder(loss=SoftTripleLoss(4, 64), batches="shuffled", **settings).fit(*blobs)
    with pytest.raises(ValueError, match=r"at least 2 \* samples_per_class = 16"):
        MetricEmbedder(**settings).fit(*blobs)


def test_bad_losses(blobs):
    with pytest.raises(ValueError, match="must be a loss, not its class"):
        MetricEmbedder(loss=RAWLoss).fit(*blobs)
    with pytest.raises(ValueError, match="'miner' parameter of MetricEmbedder must be None with a loss of skdml"):
        MetricEmbedder(loss=RAWLoss(), miner=miner).fit(*blobs)
