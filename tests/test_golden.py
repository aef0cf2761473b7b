"""Values of the authors' code, stored in one npz file a case; golden/README.md says what the files hold.

The environment variable SKDML_GOLDEN names another folder of the same form: how a file is checked follows from its
entries alone.
"""

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from skdml._pairs import pair_masks, vthm
from skdml._soft_triple import _Cosines, _half_mean_distance, _relaxed_similarity
from skdml.losses import (
    RAWLoss,
    SoftTripleLoss,
    SSTLoss,
)
from skdml.metrics import recall_at_k

FOLDER = Path(os.environ.get("SKDML_GOLDEN", Path(__file__).parent / "golden"))

LOSS_TOLERANCE = 1e-8  # relative to the loss
GRADIENT_TOLERANCE = 1e-6  # relative to the largest entry


class Case:
    """One file: ``case.name`` is the entry as a tensor, a string or a bool, ``case.hp`` the hyperparameters."""

    def __init__(self, path):
        with np.load(path) as file:
            self.arrays = dict(file)
        self.hp = json.loads(str(self.arrays["hyperparameters"]))
        self.normalizes = bool(self.arrays["normalizes_inputs"])
        self.quirk = bool(self.arrays.get("quirk_matters", False))

    def __contains__(self, name):
        return name in self.arrays

    def __getitem__(self, name):
        """Return the entry as a fresh tensor; where the reference has a bug that matters here, the right value."""
        if self.quirk and f"{name}_without_quirk" in self:
            name = f"{name}_without_quirk"
        return torch.from_numpy(self.arrays[name].copy())

    def inputs(self):
        """Return the raw embeddings, which collect the gradient, and what the loss is given."""
        raw = self["embeddings"].requires_grad_()
        return raw, torch.nn.functional.normalize(raw) if self.normalizes else raw

    def check(self, loss, **gradients):
        """Compare a loss, and by name of their entries the gradients of its backward pass."""
        expected = self["loss"].item()
        assert loss.item() == pytest.approx(expected, rel=LOSS_TOLERANCE, abs=1e-14)
        loss.backward()
        for name, leaf in gradients.items():
            check_close(leaf.grad, self[name])


def check_close(actual, expected, tolerance=GRADIENT_TOLERANCE):
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * max(expected.abs().max().item(), 1e-8))


def check_softtriple(case):
    hp = case.hp
    if hp.get("eps", 1e-5) != 1e-5:
        pytest.skip("the reference has another constant under the root")
    centers = case["centers"]
    C, K, D = centers.shape
    criterion = SoftTripleLoss(
        C, D, n_centers=K, scale=hp["la"], gamma=hp["gamma"], margin=hp["margin"], tau=hp["tau"]
    ).double()
    criterion.centers.data = centers
    raw, embeddings = case.inputs()
    y = case["labels"]
    case.check(criterion(embeddings, y), grad_embeddings=raw, grad_centers=criterion.centers)

    with torch.no_grad():
        s, gram = _Cosines.apply(embeddings, criterion.centers)
        similarity = _relaxed_similarity(s, hp["gamma"])
        if "sim_class" in case:
            check_close(similarity, case["sim_class"], LOSS_TOLERANCE)
        if "loss_classify" in case:
            criterion.tau = 0.0
            check_close(criterion(embeddings, y), case["loss_classify"], LOSS_TOLERANCE)
        # With tau = 0 or one center a class the reference leaves the term out and reports 0.
        if "regularizer" in case and hp["tau"] > 0 and K > 1:
            check_close(_half_mean_distance(gram), case["regularizer"], LOSS_TOLERANCE)


def check_normalized_softmax(case):
    proxies = case["proxies"]
    scale = 1 / case.hp["temperature"]
    criterion = SoftTripleLoss(*proxies.shape, n_centers=1, scale=scale, margin=0.0, tau=0.0).double()
    criterion.centers.data = proxies[:, None]
    raw, embeddings = case.inputs()
    case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw)
    check_close(criterion.centers.grad[:, 0], case["grad_proxies"])


def check_raw(case):
    hp = case.hp
    mined = hp["epsilon"] is not None and hp.get("mining", True)
    mining = {"mining": "vthm", "mining_margin": hp["epsilon"]} if mined else {"mining": None}
    criterion = RAWLoss(alpha=hp["alpha"], beta=hp["beta"], threshold=hp["lam"], **mining)
    raw, embeddings = case.inputs()
    y = case["labels"]
    case.check(criterion(embeddings, y), grad_embeddings=raw)

    S = (embeddings @ embeddings.T).detach()
    positive, negative = selected = criterion.mine(S, *pair_masks(y), embeddings.shape[1])
    if "selected_pos" in case or case.quirk:
        torch.testing.assert_close(positive, case["selected_pos"])
        torch.testing.assert_close(negative, case["selected_neg"])
    if mined:
        for mask, same in zip(selected, vthm(S, *pair_masks(y), hp["epsilon"]), strict=True):
            torch.testing.assert_close(mask, same)
    if "weights_anchor" in case and not case.quirk:  # they include the quirk
        S.requires_grad_()
        criterion.pair_loss(S, positive, negative).backward()
        check_close((1 - 2 * positive.double()) * len(y) * S.grad, case["weights_anchor"])


def check_sst(case):
    criterion = SSTLoss(n_targets=case.hp["n_targets"])
    raw, embeddings = case.inputs()
    y = case["labels"]
    positive, negative = pair_masks(y)
    anchor, target, impostor = case["triplets"]
    targets = torch.zeros_like(positive)
    targets[anchor, target] = True
    given = torch.zeros(len(y), len(y), len(y), dtype=torch.bool)
    given[anchor, target, impostor] = True
    assert given.equal(targets[:, :, None] & negative[:, None, :]), "the triplets are not targets times impostors"
    assert targets.sum(dim=1).max() <= criterion.n_targets

    # On the given targets: the reference may have chosen them by other embeddings, or among ties.
    case.check(criterion.pair_loss(criterion._similarities(embeddings), targets, negative), grad_embeddings=raw)
    if "builder_embeddings" not in case and not case["builder_has_ties"]:
        raw, embeddings = case.inputs()
        case.check(criterion(embeddings, y), grad_embeddings=raw)


def check_recall_at_k(case):
    gallery = {
        name: case[key] for name, key in (("gallery", "gallery"), ("gallery_y", "gallery_labels")) if key in case
    }
    expected = case["recall_valid_queries_only" if "recall_valid_queries_only" in case else "recall"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*quer")  # counts the queries without a match
        recall = recall_at_k(
            case["embeddings"], case["labels"], k=case["ks"].tolist(), metric=case.hp["metric"], **gallery
        )
    np.testing.assert_allclose(recall, expected, rtol=1e-12)


# A file's loss_name -> what checks it. Files of other families are not collected.
FAMILIES = {
    "normalized_softmax": check_normalized_softmax,
    "raw_all_pairs": check_raw,
    "raw_vthm": check_raw,
    "recall_at_k": check_recall_at_k,
    "softtriple": check_softtriple,
    "sst": check_sst,
}


def family(path):
    with np.load(path) as file:
        return str(file["loss_name"])


PATHS = [path for path in sorted(FOLDER.glob("*.npz")) if family(path) in FAMILIES]


def test_folder_holds_cases():
    assert PATHS, f"no file of {sorted(FAMILIES)} in {FOLDER}"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_equals_the_reference(path):
    FAMILIES[family(path)](Case(path))
