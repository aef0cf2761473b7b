"""Backbones by name: ``backbone="timm/resnet50"``, ``backbone="torchvision/resnet50"``."""

import os

import torch
from torch import nn

from .._ambient import float32_by_default

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of torchvision's weights


def load_backbone(name, weights, pooling):
    """Return a network without its classifier, and the mean and standard deviation of its images.

    To be called in a block of `seeded`: random weights come from torch's global generators.

    Parameters
    ----------
    name : str
        "timm/..." or "torchvision/...".
    weights : str, os.PathLike or None
        "pretrained": the library's default weights for the network, downloaded if necessary. A file: the network's
        state dict, with or without the classifier. None: random weights. For torchvision, also the name of its weights.
    pooling : {"avg", "max", "avg+max"}
        "avg": the network's own pooling.

    Returns
    -------
    backbone : nn.Module
        Gives (B, f), or maps (B, f, h, w) if ``pooling`` is not "avg".
    pixel_scale : (tuple of float, tuple of float)

    Raises
    ------
    ImportError
        If the library is not installed.
    ValueError
        If the library does not know the network or the weights, or the file does not hold them.
    """
    library, _, model = name.partition("/")
    with float32_by_default():
        return (_timm if library == "timm" else _torchvision)(model, weights, pooling)


def _import(library):
    try:
        return __import__(library)
    except ImportError as error:
        raise ImportError(
            f"backbone='{library}/...' needs the package {library}: pip install {library}. (The import failed: {error})"
        ) from error
    except RuntimeError as error:  # raised by a build for another torch
        raise ImportError(
            f"The package {library}, or torchvision, which it uses, does not match the installed torch "
            f"{torch.__version__}. Install matching versions. (The import failed: {error})"
        ) from error


def _timm(model, weights, pooling):
    timm = _import("timm")
    options = {"num_classes": 0} if pooling == "avg" else {"num_classes": 0, "global_pool": ""}
    architecture, _, tag = model.partition(".")
    if architecture not in timm.list_models():
        raise ValueError(f"timm {timm.__version__} has no network {model!r}; timm.list_models() lists its networks.")
    known = timm.list_pretrained(f"{architecture}.*")
    if (tag and model not in known) or (weights == "pretrained" and not known):
        raise ValueError(
            f"timm {timm.__version__} has no weights for {model!r}, only for {', '.join(known) or 'other networks'}. "
            "Set backbone_weights to None for random weights, or to a file."
        )
    backbone = timm.create_model(model, pretrained=weights == "pretrained", **options)
    config = backbone.pretrained_cfg
    if weights not in ("pretrained", None):
        classifier = config["classifier"]
        _load_file(backbone, weights, (classifier,) if isinstance(classifier, str) else classifier)
    return backbone, (tuple(config["mean"]), tuple(config["std"]))


def _torchvision(model, weights, pooling):
    models = _import("torchvision").models
    if model not in models.list_models(module=models):
        raise ValueError(
            f"torchvision has no classifier {model!r}; torchvision.models.list_models() lists its networks."
        )
    is_file = weights not in ("pretrained", None) and os.path.exists(weights)
    if is_file or weights is None:
        backbone = models.get_model(model, weights=None)
    else:
        try:
            backbone = models.get_model(model, weights="DEFAULT" if weights == "pretrained" else weights)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"backbone_weights={weights!r} is neither a file nor one of the weights that torchvision has for "
                f"{model}: {', '.join(models.get_model_weights(model).__members__)}."
            ) from error
    # The last layer is the classifier: fc, heads.head, classifier.6, ...; in SqueezeNet it is a convolution.
    last = [name for name, layer in backbone.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)][-1]
    if is_file:
        _load_file(backbone, weights, (last,))
    parent, _, child = last.rpartition(".")
    setattr(backbone.get_submodule(parent), child, nn.Identity())
    if getattr(backbone, "aux_logits", False):  # further classifiers of GoogLeNet and Inception
        backbone.aux_logits = False
    if pooling != "avg":
        names = [name for name, _ in backbone.named_children()]
        if names[-2:] != ["avgpool", "fc"]:
            raise ValueError(
                f"pooling={pooling!r} needs a torchvision network that ends in avgpool and fc, such as resnet50; "
                f"{model} does not. Use pooling='avg', or the network from timm."
            )
        backbone = nn.Sequential(*list(backbone.children())[:-2])
    return backbone, IMAGENET


def _load_file(backbone, path, classifier):
    """Load a state dict, except for the layers named in ``classifier``."""
    if not os.path.isfile(path):
        raise ValueError(f"backbone_weights={path!r} is not an existing file.")
    try:
        if str(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        own = backbone.state_dict()
        prefixes = tuple(f"{name}." for name in classifier)
        state = {key: value for key, value in state.items() if key in own or not key.startswith(prefixes)}
        kept = {key for key in own if key.startswith(prefixes)}
        state |= {key: own[key] for key in kept}
        backbone.load_state_dict(state)
    except Exception as error:
        raise ValueError(f"backbone_weights={path!r} does not hold the weights of the network: {error}") from error
