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

from skdml._loss.memory import CrossBatchMemory
from skdml._loss.mining import distance_log_probabilities, vthm
from skdml._loss.pairs import PairLoss, pair_masks
from skdml._loss.similarities import distance_similarities, distances
from skdml._loss.terms import log_sum_exp
from skdml._methods.soft_triple import _Cosines, _half_mean_distance, _relaxed_similarity
from skdml.losses import (
    AngularLoss,
    ArcFaceLoss,
    BinomialDevianceLoss,
    CircleLoss,
    ContrastiveLoss,
    HistogramLoss,
    LargeMarginSoftmaxLoss,
    LiftedStructureLoss,
    MarginLoss,
    NormSoftmaxLoss,
    NPairsLoss,
    ProxyAnchorLoss,
    ProxyNCALoss,
    RAWLoss,
    RecallSurrogateLoss,
    SoftTripleLoss,
    SSTLoss,
    SupConLoss,
    TripletLoss,
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
        s, gram, _ = _Cosines.apply(embeddings, criterion.centers)
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
    check_proxies(case, NormSoftmaxLoss(*proxies.shape, scale=scale))


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


class SumContrastive(PairLoss):
    """What the reference remembers with: the sum of [m_p - s]+ over positives and [s - m_n]+ over negatives."""

    def __init__(self, hp):
        super().__init__(mining=None, mining_margin=0.1)
        self.hp = hp

    def pair_loss(self, S, positive, negative):
        pull, push = (self.hp["pos_margin"] - S).relu(), (S - self.hp["neg_margin"]).relu()
        return torch.where(positive, pull, 0).sum() + torch.where(negative, push, 0).sum()


def check_xbm_contrastive(case):
    memory = CrossBatchMemory(SumContrastive(case.hp), case.hp["memory_size"], memory_start=0)
    size = case.hp["batch"]
    steps = zip(case["embeddings"].split(size), case["labels"].split(size), case["losses"], case["grads"], strict=True)
    for raw, y, loss, grad in steps:
        embeddings = torch.nn.functional.normalize(raw.requires_grad_()) if case.normalizes else raw.requires_grad_()
        value = memory.memory_loss(embeddings, y)
        check_close(value, loss, LOSS_TOLERANCE)
        check_close(torch.autograd.grad(value, raw, retain_graph=True)[0], grad)
        memory(embeddings, y)


def single_pair(S, i, j):
    mask = torch.zeros_like(S, dtype=torch.bool)
    mask[i, j] = True
    return mask


def check_triplet(case):
    """Triplet by triplet as stored, then all of the batch at once where these are stored."""
    hp, reduction = case.hp, str(case.arrays["reduction"])
    squared = "plain distances" not in str(case.arrays["notes"])
    smooth = hp.get("smooth_loss", False)
    if smooth and hp["margin"] != 0:
        pytest.skip("the reference has a margin in the softplus, where the soft margin has none")
    criterion = TripletLoss(margin=hp["margin"], squared=squared, soft_margin=smooth, mining=None)
    raw, embeddings = case.inputs()
    S = criterion._similarities(embeddings)
    anchor, target, impostor = case["triplets"]
    if hp.get("swap"):  # the harder of the triplets of anchor a and of anchor p
        swapped = S[target, impostor] > S[anchor, impostor]
        anchor, target = torch.where(swapped, target, anchor), torch.where(swapped, anchor, target)
    terms = [
        criterion.pair_loss(S, single_pair(S, a, p), single_pair(S, a, n))
        for a, p, n in zip(anchor, target, impostor, strict=True)
    ]
    terms = torch.stack(terms)
    n_active, n_terms = (terms > 0).sum(), len(terms)
    only_active = "loss>0" in reduction
    case.check(terms.sum() / (n_active if only_active else n_terms), grad_embeddings=raw)

    positive, negative = pair_masks(case["labels"])
    if not hp.get("swap") and n_terms == (positive.sum(dim=1) * negative.sum(dim=1)).sum():
        raw, embeddings = case.inputs()
        loss = criterion(embeddings, case["labels"])
        case.check(loss if only_active or smooth else loss * n_active / n_terms, grad_embeddings=raw)


def check_triplet_semihard(case):
    if "triplets" in case:  # all semi-hard ones, not one for each positive pair
        check_triplet(case)
        return
    raw, embeddings = case.inputs()
    criterion = TripletLoss(margin=case.hp["margin"], mining="semihard")
    case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw)


def check_triplet_batch_hard(case):
    raw, embeddings = case.inputs()
    squared = "plain distances" not in str(case.arrays["notes"])
    criterion = TripletLoss(margin=case.hp["margin"], squared=squared, mining="hard")
    case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw)


def check_margin(case):
    """Pair by pair, as the reference counts a pair once a triplet; then at once where no pair is counted twice."""
    hp = case.hp
    if hp["nu"] != 0:
        pytest.skip("the regularizer is a mean over pairs, where the reference has a sum")
    beta, y = case["beta"], case["labels"]
    anchor, target, impostor = case["triplets"]
    nobody = torch.zeros(len(y), len(y), dtype=torch.bool)

    def inputs():
        criterion = MarginLoss(len(beta), margin=hp["margin"]).double()
        criterion.betas.data = beta.clone()
        raw, embeddings = case.inputs()
        # d^2 = 2 - 2 s; the reference adds a constant under the root.
        return criterion, raw, criterion._similarities(embeddings) - hp["sqrt_eps"] / 2, criterion.betas[y]

    criterion, raw, S, boundary = inputs()
    terms = [
        criterion.pair_loss(S, single_pair(S, a, p), nobody, boundary) for a, p in zip(anchor, target, strict=True)
    ]
    terms += [
        criterion.pair_loss(S, nobody, single_pair(S, a, n), boundary) for a, n in zip(anchor, impostor, strict=True)
    ]
    terms = torch.stack(terms)
    case.check(terms.sum() / (terms > 0).sum().clamp(min=1), grad_embeddings=raw, grad_beta=criterion.betas)

    if len(anchor.unique()) == len(anchor):
        criterion, raw, S, boundary = inputs()
        loss = criterion.pair_loss(S, single_pair(S, anchor, target), single_pair(S, anchor, impostor), boundary)
        case.check(loss, grad_embeddings=raw, grad_beta=criterion.betas)


def check_distance_weighted_sampling(case):
    embeddings, (_, negative) = case["embeddings"], pair_masks(case["labels"])
    S = distance_similarities(embeddings)
    for entry, max_distance in {"probabilities": torch.inf, "probabilities_upper_1_4": 1.4}.items():
        log_p = distance_log_probabilities(
            S, negative, embeddings.shape[1], cutoff=case.hp["cutoff"], max_distance=max_distance
        )
        check_close(log_p.exp(), case[entry], LOSS_TOLERANCE)


def check_proxies(case, criterion):
    """Compare a loss whose learned tensor the file calls proxies."""
    criterion.double().proxies.data = case["proxies"]
    raw, embeddings = case.inputs()
    case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw, grad_proxies=criterion.proxies)


def check_proxynca(case):
    # The codes' constants stand in the recipe: the lengths of samples and proxies, or one factor of squared distances.
    recipe = json.loads(str(case.arrays["oracle"]))["kw"]
    factor = recipe["scale"] if "scale" in recipe else recipe["sx"] * recipe["sp"]
    criterion = ProxyNCALoss(
        *case["proxies"].shape,
        scale=factor**0.5,
        positive_in_denominator=recipe.get("positive_in_denominator", False),
        label_smoothing=recipe.get("smoothing", 0.0),
    )
    check_proxies(case, criterion)


def check_proxy_anchor(case):
    hp = case.hp
    check_proxies(case, ProxyAnchorLoss(*case["proxies"].shape, alpha=hp["alpha"], margin=hp["delta"]))


def check_large_margin_softmax(case):
    check_proxies(case, LargeMarginSoftmaxLoss(*case["proxies"].shape, margin=case.hp["m"], annealing_base=0.0))


def check_subcenter_arcface(case):
    centers = case["centers"]
    C, K, D = centers.shape
    margin = np.deg2rad(case.hp["margin_deg"])
    criterion = ArcFaceLoss(C, D, n_centers=K, scale=case.hp["scale"], margin=margin).double()
    criterion.centers.data = centers
    raw, embeddings = case.inputs()
    case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw, grad_centers=criterion.centers)


def check_sup_con(case):
    hp = case.hp
    criterion = SupConLoss(temperature=hp["temperature"], base_temperature=hp.get("base_temperature"))
    raw, embeddings = case.inputs()
    y = case["labels"]
    loss = criterion(embeddings, y)
    if "loss>0" in str(case.arrays["reduction"]):  # the mean over the anchors with positives
        loss = loss * len(y) / pair_masks(y)[0].any(dim=1).sum()
    case.check(loss, grad_embeddings=raw)


def check_circle(case):
    criterion = CircleLoss(margin=case.hp["m"], scale=case.hp["gamma"])
    raw, embeddings = case.inputs()
    y = case["labels"]
    positive, negative = pair_masks(y)
    if "unordered pairs" in str(case.arrays["reduction"]):  # those of the whole batch as the pairs of one anchor
        S = embeddings @ embeddings.T
        loss = criterion.pair_loss(*(matrix.triu(diagonal=1).flatten()[None] for matrix in (S, positive, negative)))
    else:  # the mean over the anchors that have both sides
        loss = criterion(embeddings, y) * len(y) / (positive.any(dim=1) & negative.any(dim=1)).sum()
    case.check(loss, grad_embeddings=raw)


def check_recall_surrogate(case):
    criterion = RecallSurrogateLoss(ks=case.hp["ks"], tau1=case.hp["tau1"], tau2=case.hp["tau2"])
    raw, embeddings = case.inputs()
    case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw)


def check_contrastive(case):
    """The codes' sums are Eq. (5) but for a factor and for what a pair's value jumps by as it becomes active."""
    hp = case.hp
    if "pos_margin" in hp:
        pytest.skip("the reference hinges plain distances and averages each side over its terms that are not 0")
    raw, embeddings = case.inputs()
    positive, negative = masks = pair_masks(case["labels"])
    B, n_positive = len(raw), positive.sum().item()
    if "margin" in hp:  # [m - d^2]+ = 2 [s - (1 - m / 2)]+, and d^2 = 2 - 2 s
        criterion = ContrastiveLoss(threshold=1 - hp["margin"] / 2)
        loss = 2 * (criterion.pair_loss(distance_similarities(embeddings), *masks) + n_positive / B)
    else:  # 1 - s for positives, and s, not s - lambda, for the active negatives
        criterion = ContrastiveLoss(threshold=hp["threshold"])
        n_active = (negative & (embeddings @ embeddings.T > hp["threshold"])).sum().item()
        loss = criterion(embeddings, case["labels"]) + (n_positive + hp["threshold"] * n_active) / B
    case.check(loss, grad_embeddings=raw)


def check_binomial(case):
    """The two sides apart, for the coefficients that the reference gives them after its mining."""
    hp = case.hp
    mining = {"mining": "vthm", "mining_margin": hp["epsilon"]} if "epsilon" in hp else {}
    criterion = BinomialDevianceLoss(alpha=hp["pos_scale"], beta=hp["neg_scale"], threshold=hp["threshold"], **mining)
    raw, embeddings = case.inputs()
    S = embeddings @ embeddings.T
    positive, negative = criterion.mine(S.detach(), *pair_masks(case["labels"]), embeddings.shape[1])
    nobody = torch.zeros_like(positive)
    pull, push = criterion.pair_loss(S, positive, nobody), criterion.pair_loss(S, nobody, negative)
    case.check(hp.get("coef_pos", 1) * pull + hp.get("coef_neg", 1) * push, grad_embeddings=raw)
    if "coef_pos" not in hp:
        raw, embeddings = case.inputs()
        case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw)


def check_lifted_generalized(case):
    hp = case.hp
    raw, embeddings = case.inputs()
    positive, negative = masks = pair_masks(case["labels"])
    if "pos_scale" in hp:
        # Neither hinge nor margin: a large margin keeps every hinge open and is taken off again. Temperatures multiply
        # S, a side at a time; the other side, all at s = 1 where 1 - s = 0, gives the log of its size.
        criterion = LiftedStructureLoss(margin=100.0, metric="cosine", mining=None)
        S = embeddings @ embeddings.T
        n_positive, n_negative = (mask.sum(dim=1).double().log().mean() for mask in masks)
        # A factor a makes 1 - (1 + a (s - 1)) = a (1 - s): log sum e^(-a s) is that, less a.
        pull = criterion.pair_loss(torch.where(positive, 1 + hp["pos_scale"] * (S - 1), 1), *masks) - n_negative
        push = criterion.pair_loss(torch.where(negative, 1 + hp["neg_scale"] * (S - 1), 1), *masks) - n_positive
        pull, push = pull - 100 - hp["pos_scale"], push - 100 + hp["neg_scale"]
        case.check(2 / hp["pos_scale"] * pull + 2 / hp["neg_scale"] * push, grad_embeddings=raw)
        return
    metric = hp.get("similarity") or "euclidean"
    margin = hp["neg_margin"] - hp["pos_margin"]
    margin = -margin if metric == "cosine" else margin
    criterion = LiftedStructureLoss(margin=margin, metric=metric, mining=None)
    loss = criterion(embeddings, case["labels"])
    # The reference keeps the negatives of an anchor without positives.
    d = distances(criterion._similarities(embeddings))
    alone = log_sum_exp(criterion.margin - d, negative)[0].relu().where(~positive.any(dim=1), 0).mean()
    case.check(loss + alone, grad_embeddings=raw)


def check_lifted_original(case):
    margin = case.hp["neg_margin"] - case.hp["pos_margin"]
    criterion = LiftedStructureLoss(margin=margin, form="original", mining=None)
    raw, embeddings = case.inputs()
    case.check(criterion(embeddings, case["labels"]), grad_embeddings=raw)


def check_angular(case):
    """The reference normalizes all but the negatives, so columns of their own stand for the rows as negatives."""
    criterion = AngularLoss(angle=case.hp["alpha_deg"])
    raw, y = case["embeddings"].requires_grad_(), case["labels"]
    unit = torch.nn.functional.normalize(raw)
    positive, negative = pair_masks(y)
    none = torch.zeros_like(positive)
    S = unit @ torch.cat([unit, raw]).T
    loss = criterion.pair_loss(S, torch.cat([positive, none], dim=1), torch.cat([none, negative], dim=1))
    case.check(loss, grad_embeddings=raw)
    if "grad_embeddings_tangent" in case:  # unit rows, where it is the same loss
        x = raw.detach().requires_grad_()
        case.check(criterion(torch.nn.functional.normalize(x), y))
        check_close(x.grad, case["grad_embeddings_tangent"])


def check_histogram(case):
    raw, embeddings = case.inputs()
    case.check(HistogramLoss(n_bins=case.hp["n_bins"])(embeddings, case["labels"]), grad_embeddings=raw)


def check_npairs(case):
    """The first two rows of a class are its pair, so the pairs of the file come first, the other rows after them."""
    raw, embeddings = case.inputs()
    pairs = torch.cat([case["anchor_idx"], case["positive_idx"]])
    others = torch.tensor([i for i in range(len(raw)) if i not in pairs.tolist()], dtype=torch.long)
    order = torch.cat([pairs, others])
    loss = NPairsLoss(l2=case.hp["l2"])(embeddings[order], case["labels"][order])
    case.check(loss, grad_embeddings=raw)


# A file's loss_name -> what checks it. Files of other families are not collected.
FAMILIES = {
    "normalized_softmax": check_normalized_softmax,
    "xbm_contrastive": check_xbm_contrastive,
    "distance_weighted_sampling": check_distance_weighted_sampling,
    "margin": check_margin,
    "triplet": check_triplet,
    "triplet_batch_hard": check_triplet_batch_hard,
    "triplet_semihard": check_triplet_semihard,
    "large_margin_softmax": check_large_margin_softmax,
    "proxy_anchor": check_proxy_anchor,
    "proxynca": check_proxynca,
    "subcenter_arcface": check_subcenter_arcface,
    "circle": check_circle,
    "recall_surrogate": check_recall_surrogate,
    "supcon": check_sup_con,
    "binomial": check_binomial,
    "contrastive": check_contrastive,
    "lifted_generalized": check_lifted_generalized,
    "lifted_original": check_lifted_original,
    "angular": check_angular,
    "histogram": check_histogram,
    "npairs": check_npairs,
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
