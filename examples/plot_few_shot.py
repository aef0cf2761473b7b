"""
Few-shot classification by the nearest class mean
=================================================

A few images of each new class are given, and every other image is assigned to the class whose given images have the
nearest mean embedding. Prototypical Networks (Snell et al., NeurIPS 2017) classify in this way and are trained on such
tasks, called episodes. Here, the embedders are trained on all training classes at once, and episodes are used only for
the test.

On this page, the classes are the bundled kanji. With the files of Omniglot, the script follows the protocol of that
paper and prints the paper's numbers in the last row::

    python examples/plot_few_shot.py --data-home /data
"""

# %%
# The data
# --------
# Omniglot has 4,800 training classes, 1,200 characters in four rotations, and 1,692 test classes, with 20 drawings per
# class. As in the paper, the final model is trained on the training and the validation classes together. The kanji are
# cropped to the same size, 28 x 28 pixels; there are 150 training classes and 150 test classes, each in 12 fonts.
import argparse
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from torch import nn

from skdml import ProxyAnchorEmbedder, RAWEmbedder, SoftTripleEmbedder
from skdml.datasets import load_kanji, load_omniglot

METHODS = {"SoftTriple": SoftTripleEmbedder, "RAW": RAWEmbedder, "ProxyAnchor": ProxyAnchorEmbedder}

parser = argparse.ArgumentParser(description="Few-shot classification of unseen kanji or Omniglot characters.")
parser.add_argument("--data-home", help="folder that holds Omniglot (default: none, the bundled kanji are used)")
parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all of them")
parser.add_argument("--epochs", type=int, help="epochs of each embedder (default: 40 on Omniglot, 3 on kanji)")
parser.add_argument("--seed", type=int, default=0, help="seed of training and episodes (default: %(default)s)")
args = parser.parse_args()

if args.data_home:
    data = load_omniglot(data_home=args.data_home, rotations=True)
    images, is_test = data.images, data.split == "test"
    settings = {"max_epochs": 40, "batch_size": 256}
    METHODS["SoftTriple"] = partial(SoftTripleEmbedder, n_centers=2)  # 20 images per class
else:
    data = load_kanji()
    images, is_test = data.images[:, 2:-2, 2:-2], ~data.train
    settings = {"max_epochs": 3}
if args.epochs:
    settings["max_epochs"] = args.epochs

X_train, y_train, X_test = images[~is_test], data.target[~is_test], images[is_test]
n_classes = len(np.unique(data.target[is_test]))
print(f"train: {len(X_train)} images of {len(np.unique(y_train))} classes")
print(f"test:  {len(X_test)} images of {n_classes} other classes")

# %%
# The episodes
# ------------
# An episode has ``n_way`` random test classes. ``n_shot`` random images of each class are shown, and others are the
# queries. Their number is what remains when five are shown, which is 15 on Omniglot, as in the authors' code.
MAX_SHOT = 5
N_EPISODES = 1000
BLOCK = 25  # episodes computed at once


def draw(rng, shape, n):
    """Return n distinct random indices of the last axis of an array of this shape, for each element of the others."""
    return rng.random(shape).argsort(axis=-1)[..., :n]


def draw_episodes(rng, X, n_episodes, n_way, n_shot):
    """Return the shown samples and the queries, each (episode, class, sample, ...)."""
    X = X.reshape(n_classes, -1, *X.shape[1:])  # (class, sample, ...): the samples are ordered by class
    n_samples = X.shape[1]
    classes = draw(rng, (n_episodes, n_classes), n_way)
    samples = draw(rng, (n_episodes, n_way, n_samples), n_shot + n_samples - MAX_SHOT)
    episodes = X[classes[:, :, None], samples]
    return episodes[:, :, :n_shot], episodes[:, :, n_shot:]


def accuracies(rng, Z, n_episodes, n_way, n_shot):
    """Return the share of each episode's queries whose nearest class mean is that of their own class."""
    shown, queries = draw_episodes(rng, Z, n_episodes, n_way, n_shot)
    means = shown.mean(axis=2)[:, None]  # (episode, 1, class, component)
    # Squared distances (episode, class of the query, query, class) minus |query|^2, which is the same for each class.
    distances = (means**2).sum(axis=-1)[:, :, None] - 2 * queries @ means.swapaxes(2, 3)
    return (distances.argmin(axis=-1) == np.arange(n_way)[:, None]).mean(axis=(1, 2))


# %%
# This is one episode with five classes: the top row has the shown image of each class, and below are three of its
# queries.
shown, queries = draw_episodes(np.random.default_rng(args.seed), X_test, 1, 5, 1)
rows = np.concatenate([shown, queries[:, :, :3]], axis=2)[0].transpose(1, 2, 0, 3)  # (row, height, class, width)
figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
ax.imshow(255 - rows.reshape(4 * 28, 5 * 28), cmap="gray")
ax.axhline(27.5, color="#0072B2")
ax.set(xticks=[], yticks=[14, 70], yticklabels=["shown", "queries"])

# %%
# Training
# --------
# The network is that of the paper: four blocks, each of which halves the images, down to one pixel with 64 features.
# These features are the embedding; there is no linear layer.


def make_backbone():
    def block(n_channels):
        return nn.Conv2d(n_channels, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)

    return nn.Sequential(*block(1), *block(64), *block(64), *block(64), nn.Flatten())


embeddings = {"raw pixels": X_test.reshape(len(X_test), -1) / np.float32(255)}
for name in args.methods:
    print(f"training {name}", flush=True)
    embedder = METHODS[name](backbone=make_backbone(), n_components=None, random_state=args.seed, verbose=1, **settings)
    embeddings[name] = embedder.fit(X_train, y_train).transform(X_test)

# %%
# Accuracy on unseen classes
# --------------------------
# The table has the mean accuracy over 1,000 episodes in percent, with its 95% confidence interval. All rows use the
# same episodes.
TASKS = [(5, 1), (5, 5), (20, 1), (20, 5)]

print(f"\n{'':30}" + "".join(f"{f'{n_way}-way {n_shot}-shot':>16}" for n_way, n_shot in TASKS))
for name, Z in embeddings.items():
    cells = []
    for n_way, n_shot in TASKS:
        rng = np.random.default_rng(args.seed)
        blocks = [accuracies(rng, Z, BLOCK, n_way, n_shot) for _ in range(N_EPISODES // BLOCK)]
        accuracy = 100 * np.concatenate(blocks)
        cells.append(f"{accuracy.mean():.1f} +- {1.96 * accuracy.std() / N_EPISODES**0.5:.1f}")
    print(f"{name:30}" + "".join(f"{cell:>16}" for cell in cells))
if args.data_home:
    published = [98.8, 99.7, 96.0, 98.9]  # Snell et al., Table 1
    print(f"{'Prototypical Networks (paper)':30}" + "".join(f"{accuracy:16.1f}" for accuracy in published))
plt.show()
