"""
Monitor training, and keep the best epoch
=========================================

Callbacks observe training or act on it. ``callbacks=`` takes the callbacks of skorch, here TensorBoard and checkpoints;
``set_callbacks`` takes those of scikit-learn, here a score after each epoch.
"""

# %%
# skorch's callbacks
# ------------------
# With ``early_stopping=True``, the history contains Recall@1 on held-out samples. The checkpoint is written whenever it
# rises, and TensorBoard receives every number in the history while the training runs. ``tensorboard --logdir`` with the
# folder shows them.
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.callback import ScoringMonitor
from skorch.callbacks import Checkpoint, TensorBoard
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from skdml import SoftTripleEmbedder
from skdml.datasets import load_kanji
from skdml.inspection import HistoryDisplay
from skdml.metrics import RecallAtK
from skdml.model_selection import class_train_test_split

kanji = load_kanji()
X, y = kanji.images[kanji.train], kanji.target[kanji.train]

runs = tempfile.TemporaryDirectory()
folder = Path(runs.name)
embedder = SoftTripleEmbedder(
    max_epochs=10,
    early_stopping=True,
    callbacks=[
        TensorBoard(SummaryWriter(folder / "board")),
        Checkpoint(monitor="valid_recall_at_1_best", dirname=folder / "checkpoint"),
    ],
    random_state=0,
).fit(X, y)

board = EventAccumulator(str(folder / "board")).Reload()
for tag in board.Tags()["scalars"]:
    print(f"{tag:26} {len(board.Scalars(tag))} values, the last {board.Scalars(tag)[-1].value:.3f}")

# %%
# Early stopping goes back to the best epoch, which is that of the checkpoint:
saved = torch.load(folder / "checkpoint" / "params.pt")
print(all(torch.equal(saved[name], value) for name, value in embedder.network_.state_dict().items()))
runs.cleanup()

# %%
# ``history_`` holds the same numbers.
HistoryDisplay.from_estimator(embedder, measure="validation_recall_at_1")

# %%
# scikit-learn's callbacks
# ------------------------
# The held-out samples are from classes that are trained on, but retrieval is for other classes. Here, a quarter of the
# characters is monitored and not trained on. ``ScoringMonitor`` (scikit-learn 1.9) scores the embedder after each
# epoch.
X_train, X_watched, y_train, y_watched = class_train_test_split(X, y, test_size=0.25, shuffle=True, random_state=0)


def recalls(embedder, X, y):
    score = RecallAtK()
    return {"trained on": score(embedder, X, y), "not trained on": score(embedder, X_watched, y_watched)}


monitor = ScoringMonitor(scoring=recalls)
SoftTripleEmbedder(max_epochs=10, random_state=0).set_callbacks(monitor).fit(X_train, y_train)
epochs = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]

figure, ax = plt.subplots(layout="constrained")
for name, color, style in (("trained on", "#0072B2", "-"), ("not trained on", "#D55E00", "--")):
    ax.plot(range(1, len(epochs) + 1), [row[name] for row in epochs], style, color=color, label=f"characters {name}")
ax.set(xlabel="epoch", ylabel="Recall@1", title="SoftTripleEmbedder, scored after each epoch")
ax.legend(loc="lower right")
plt.show()
