"""
Your own network, your own loop
===============================

Any ``torch.nn.Module`` that maps a batch to rows of features can be the backbone, any skorch callback can monitor the
training, and the losses work without the estimators.
"""

# %%
# A backbone
# ----------
# Images arrive as float tensors (B, channels, height, width). A linear head to ``n_components`` is added automatically.
import matplotlib.pyplot as plt
import torch
from skorch.callbacks import GradientNormClipping, LRScheduler
from torch import nn

from skdml import SoftTripleEmbedder
from skdml.datasets import load_kanji
from skdml.losses import RAWLoss
from skdml.metrics import recall_at_k

kanji = load_kanji()
X_train, y_train = kanji.images[kanji.train], kanji.target[kanji.train]
X_test, y_test = kanji.images[~kanji.train], kanji.target[~kanji.train]


class Residual(nn.Module):
    """Two convolutions with a skip connection; halves the image."""

    def __init__(self, width_in, width):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.around = nn.Conv2d(width_in, width, 1, stride=2)

    def forward(self, x):
        return torch.relu(self.body(x) + self.around(x))


def make_backbone():
    """Map 32 x 32 pixels to 4 x 4 positions of 64 features each. Positions are kept: they matter in characters."""
    return nn.Sequential(Residual(1, 32), Residual(32, 64), Residual(64, 64), nn.Flatten())


# %%
# Callbacks
# ---------
# Here, a torch schedule replaces the built-in one, and long gradients are clipped.
embedder = SoftTripleEmbedder(
    backbone=make_backbone(),
    max_epochs=6,
    callbacks=[LRScheduler("CosineAnnealingLR", T_max=6), GradientNormClipping(5.0)],
    random_state=0,
).fit(X_train, y_train)
print(f"raw pixels: Recall@1 on unseen characters {recall_at_k(X_test.reshape(len(X_test), -1), y_test):.3f}")
print(f"estimator: Recall@1 on unseen characters {embedder.score(X_test, y_test):.3f}")

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
ax.plot([epoch["epoch"] for epoch in embedder.history_], [epoch["loss"] for epoch in embedder.history_], "o-")
ax.set(xlabel="epoch", ylabel="loss", ylim=(0, None))

# %%
# The losses in a plain loop
# --------------------------
# A loss uses embeddings as they are, so the loop normalizes them. Losses over pairs need several samples per class in a
# batch: here, 16 classes with 4 samples each.
torch.manual_seed(0)
network = nn.Sequential(make_backbone(), nn.Linear(1024, 64))
loss_fn = RAWLoss()
optimizer = torch.optim.AdamW([*network.parameters(), *loss_fn.parameters()], lr=2e-3)

X = torch.from_numpy(X_train).float().sub(127).div(128).unsqueeze(1)  # (n, 1, 32, 32)
rows = torch.arange(len(X)).reshape(-1, 12)  # the images are ordered by class
for _ in range(300):
    classes = torch.randperm(len(rows))[:16]
    batch = rows[classes][:, torch.randperm(12)[:4]].flatten()
    optimizer.zero_grad()
    Z = nn.functional.normalize(network(X[batch]))
    loss_fn(Z, torch.from_numpy(y_train)[batch]).backward()
    optimizer.step()

with torch.no_grad():
    X = torch.from_numpy(X_test).float().sub(127).div(128).unsqueeze(1)
    Z = nn.functional.normalize(network.eval()(X))
print(f"plain loop: Recall@1 on unseen characters {recall_at_k(Z, y_test):.3f}")

plt.show()
