"""Several labels per sample: samples match if they have one in common. Against loops, and against one class each."""

import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.exceptions import DataConversionWarning
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import FunctionTransformer

import skdml
from skdml import FoldEnsembleEmbedder, MetricEmbedder, RAWEmbedder, SupConEmbedder, losses
from skdml._engine.batches import MultilabelBatches
from skdml._engine.embedder import BaseEmbedder
from skdml._engine.training import hold_out
from skdml._labels import read_targets
from skdml._loss.memory import CrossBatchMemory
from skdml._loss.pairs import PairLoss, pair_masks
from skdml.inspection import EmbeddingDisplay, RecallCurveDisplay, RetrievalDisplay, pair_weights
from skdml.metrics import (
    NMI,
    RecallAtK,
    RetrievalScorer,
    _rows,
    ami_score,
    intra_inter_ratio,
    map_at_r,
    mean_average_precision,
    mean_reciprocal_rank,
    nmi_score,
    pairwise_f1_score,
    precision_at_1,
    r_precision,
    recall_at_k,
    retrieval_report,
)
from skdml.model_selection import ClassKFold, ClassShuffleSplit, class_train_test_split
from skdml.verification import PairVerifier, calibrate_threshold

pytestmark = pytest.mark.filterwarnings("ignore:.*queries are left out")

N_SAMPLES, N_LABELS = 60, 5


def make_labels(n, n_labels, seed, share=None):
    """Return which labels each of n samples has: some have several, some none."""
    rng = np.random.default_rng(seed)
    return rng.random((n, n_labels)) < (1.2 / n_labels if share is None else share)


@pytest.fixture
def tagged():
    """60 vectors that are sums of the directions of their labels: (X, Y)."""
    rng = np.random.default_rng(0)
    Y = make_labels(N_SAMPLES, N_LABELS, 0, 0.3)
    return (Y @ (3 * rng.normal(size=(N_LABELS, 8))) + rng.normal(size=(N_SAMPLES, 8))).astype(np.float32), Y


# ---- labels

CONTAINERS = {
    "bool": np.array,
    "int": lambda Y: Y.astype(int),
    "float": lambda Y: Y.astype(float),
    "lists": lambda Y: Y.astype(int).tolist(),
    "objects": lambda Y: Y.astype(object),
    "tensor": torch.tensor,
    "csr_matrix": sparse.csr_matrix,
    "csc_array": lambda Y: sparse.csc_array(Y.astype(int)),
    "coo_array": lambda Y: sparse.coo_array(Y.astype(float)),
    "DataFrame": pd.DataFrame,
    "nullable": lambda Y: pd.DataFrame(Y).astype("boolean"),
    "mixed columns": lambda Y: pd.DataFrame({0: Y[:, 0], **{c: Y[:, c].astype(int) for c in range(1, Y.shape[1])}}),
}


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container_is_read_exactly(container):
    Y = make_labels(20, 3, 0)
    read = read_targets(container(Y))
    assert read.dtype == bool
    np.testing.assert_array_equal(read, Y)


def test_one_label_in_each_row_is_still_an_indicator():
    assert read_targets(np.eye(4, dtype=int)).shape == (4, 4)


BAD = {
    "2 among the values": (lambda Y: 2 * Y.astype(int), r"as two or more columns of 0 and 1"),
    "2 in a sparse matrix": (lambda Y: sparse.csr_matrix(2 * Y.astype(int)), r"as two or more columns of 0 and 1"),
    "strings": (lambda Y: Y.astype(str), r"as two or more columns of 0 and 1"),
    "lists of labels": (lambda Y: [[1], [2, 3]] * 30, r"MultiLabelBinarizer\(\).fit_transform\(y\)"),
    "missing": (lambda Y: np.where(Y, np.nan, 0), r"y contains NaN or other missing values: \d+ of 300"),
    "masked": (lambda Y: np.ma.array(Y, mask=Y), r"y contains NaN or other missing values: \d+ of 300"),
    "three axes": (lambda Y: Y[None], r"got shape \(1, 60, 5\)"),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_what_is_no_indicator_is_refused(tagged, make, message):
    X, Y = tagged
    for read in (RAWEmbedder(max_epochs=1).fit, recall_at_k):
        with pytest.raises(ValueError, match=message):
            read(X, make(Y))


IDENTITY = FunctionTransformer().fit(np.zeros((1, 8)))
NEED_CLASSES = {
    "nmi_score": nmi_score,
    "ami_score": ami_score,
    "pairwise_f1_score": pairwise_f1_score,
    "intra_inter_ratio": intra_inter_ratio,
    "NMI": lambda X, Y: NMI()(IDENTITY, X, Y),
    "ClassKFold": lambda X, Y: list(ClassKFold(2).split(X, Y)),
    "ClassShuffleSplit": lambda X, Y: list(ClassShuffleSplit(2).split(X, Y)),
    "class_train_test_split": class_train_test_split,
    "FoldEnsembleEmbedder": lambda X, Y: FoldEnsembleEmbedder(RAWEmbedder(max_epochs=1)).fit(X, Y),
    "calibrate_threshold": lambda X, Y: calibrate_threshold(IDENTITY, X, Y),
    "PairVerifier": PairVerifier(IDENTITY).fit,
    "RetrievalDisplay": RetrievalDisplay.from_embeddings,
    "EmbeddingDisplay": EmbeddingDisplay.from_embeddings,
}


@pytest.mark.parametrize("function", NEED_CLASSES.values(), ids=NEED_CLASSES)
def test_what_needs_classes_says_so(tagged, function):
    with pytest.raises(ValueError, match=r"one class label per sample.* got shape \(60, 5\). Several.*argmax"):
        function(*tagged)


def test_splits_name_what_to_use_instead(tagged):
    with pytest.raises(ValueError, match="use KFold or ShuffleSplit of scikit-learn"):
        class_train_test_split(*tagged)


# ---- losses


def masks_by_hand(Y, columns=None):
    columns = Y if columns is None else columns
    positive, negative = np.zeros((2, len(Y), len(columns)), dtype=bool)
    for i, row in enumerate(Y):
        for j, column in enumerate(columns):
            if i != j:
                positive[i, j] = any(a and b for a, b in zip(row, column, strict=True))
                negative[i, j] = not positive[i, j]
    return positive, negative


@pytest.mark.parametrize(("n", "n_labels"), [(1, 2), (9, 2), (12, 7), (30, 200)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_masks_of_pairs(n, n_labels, dtype):
    Y = make_labels(n + 5, n_labels, n)
    Y[0] = False  # a row without a label is no negative of itself
    for columns in (Y[:n], Y):
        found = pair_masks(torch.tensor(Y[:n]).to(dtype), torch.tensor(columns).to(dtype))
        for mask, expected in zip(found, masks_by_hand(Y[:n], columns), strict=True):
            np.testing.assert_array_equal(mask, expected)


REFUSING = {
    "AngularLoss",
    "ArcFaceLoss",
    "ClusteringLoss",
    "LargeMarginSoftmaxLoss",
    "MagnetLoss",
    "MarginLoss",
    "NPairsLoss",
    "NormSoftmaxLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SSTLoss",
    "SoftTripleLoss",
}
TAKING = sorted(set(losses.__all__) - REFUSING)
OTHER_SETTINGS = {
    "LiftedStructureLoss": [{"form": "original"}],
    "TripletLoss": [{"mining": None}, {"mining": "hard"}, {"mining": None, "soft_margin": True}],
    "ContrastiveLoss": [{"mining": "distance_weighted"}, {"metric": "euclidean"}],
    "HDCLoss": [{"hard_fractions": (0.5, 0.3)}],
    "PDDMLoss": [{"n_quadruplets": 2}],
}
LOSSES = [(name, settings) for name in TAKING for settings in [{}, *OTHER_SETTINGS.get(name, [])]]


def make_loss(name, **options):
    cls = getattr(losses, name)
    sizes = {"n_classes": N_LABELS, "n_components": 6}
    sizes = {key: value for key, value in sizes.items() if key in inspect.signature(cls).parameters}
    torch.manual_seed(0)
    return cls(**sizes, **options)


def make_batch(n=14, seed=0):
    """Return unit rows and their labels, of which the first row has none."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.nn.functional.normalize(torch.randn(n, 6, generator=generator, dtype=torch.float64))
    Y = torch.tensor(make_labels(n, N_LABELS, seed, 0.3))
    Y[0] = False
    return x.requires_grad_(), Y


def value_and_gradient(loss, x, y, **weights):
    torch.manual_seed(0)  # of the draws of a mining rule
    value = loss(x, y, **weights)
    return value, *torch.autograd.grad(value, x)


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_rows_with_one_label_each_are_classes(name, options):
    loss = make_loss(name, **options).double()
    x, _ = make_batch()
    y = torch.arange(len(x)) % 4
    w = torch.linspace(0, 1, len(x), dtype=torch.float64)
    for weights in ({}, {"sample_weight": w}):
        torch.testing.assert_close(
            value_and_gradient(loss, x, torch.eye(4, dtype=torch.bool)[y], **weights),
            value_and_gradient(loss, x, y, **weights),
        )


@pytest.mark.parametrize(("name", "options"), LOSSES)
def test_what_counts_is_which_pairs_share_a_label(name, options):
    """Repeated columns, columns of zeros and the order of the labels say nothing; integers say what booleans do."""
    loss = make_loss(name, **options).double()
    x, Y = make_batch()
    expected = value_and_gradient(loss, x, Y)
    assert expected[0] > 0 or name == "ContrastiveLoss"
    assert expected[1].isfinite().all()
    others = torch.cat([Y.flip(1), torch.zeros(len(Y), 2, dtype=torch.bool), Y[:, :2]], dim=1)
    torch.testing.assert_close(value_and_gradient(loss, x, others), expected)
    torch.testing.assert_close(value_and_gradient(loss, x, Y.to(torch.int8)), expected, rtol=0, atol=0)


def test_loss_of_pairs_by_hand():
    """Contrastive, pair by pair; the row without a label pushes all others."""
    x, Y = make_batch()
    S = (x @ x.T).detach().numpy()
    positive, negative = masks_by_hand(Y.numpy())
    expected = ((np.maximum(S - 0.5, 0) * negative).sum() - (S * positive).sum()) / len(S)
    assert losses.ContrastiveLoss()(x, Y).item() == pytest.approx(expected)


def test_quadruplets_need_a_negative_at_both_ends():
    """Of rows 0 and 1, only row 0 has a negative: row 2, of label 1, shares label 1 with row 1."""
    x, _ = make_batch(3)
    Y = torch.tensor([[1, 0], [1, 1], [0, 1]])
    loss = make_loss("PDDMLoss").double()
    assert loss(x, Y).item() == 0
    assert loss(x[:2], Y[:2]).item() == 0


@pytest.mark.parametrize("name", [name for name in TAKING if issubclass(getattr(losses, name), PairLoss)])
def test_memory_of_earlier_batches(name):
    loss = make_loss(name).double()
    memory = CrossBatchMemory(loss, 20, 0)
    (x, Y), (earlier, earlier_Y) = make_batch(8, 0), make_batch(8, 1)
    memory(earlier, earlier_Y)
    S = loss._similarities(x, torch.cat([x, earlier]).detach())
    masks = pair_masks(Y, torch.cat([Y, earlier_Y]))
    expected = loss(x, Y) + loss.pair_loss(S, *loss.mine(S.detach(), *masks, 6))
    torch.testing.assert_close(memory(x, Y), expected)


@pytest.mark.parametrize("name", sorted(REFUSING))
def test_losses_that_need_classes_say_why(name):
    x, Y = make_batch()
    with pytest.raises(ValueError, match=rf"^{name} \w+ .* and takes one class label per .*got shape \(14, 5\).*RAW"):
        make_loss(name)(x, Y)


@pytest.mark.parametrize("name", TAKING)
def test_bad_batches_of_labels(name):
    x, Y = make_batch()
    loss = make_loss(name)
    with pytest.raises(ValueError, match="values from 0 to 3; need 0 and 1"):
        loss(x, 3 * Y.long())
    with pytest.raises(ValueError, match=r"y of shape \(13, 5\)"):
        loss(x, Y[1:])
    with pytest.raises(ValueError, match=r"sample_weight of shape \(14, 5\)"):
        loss(x, Y, sample_weight=Y.double())
    assert loss(x[:0], Y[:0]).item() == 0


def test_pair_weights_have_the_signs_of_the_pairs():
    x, Y = make_batch()
    weights = pair_weights(losses.BinomialDevianceLoss(), x, Y)
    positive, negative = pair_masks(Y)
    assert (weights[positive | negative] > 0).all()
    with pytest.raises(ValueError, match="SSTLoss compares the negatives"):
        pair_weights(losses.SSTLoss(), x.detach().numpy(), Y.numpy())


# ---- batches

rows_of_labels = (
    st.builds(
        make_labels, st.integers(2, 120), st.integers(2, 30), st.integers(0, 999), st.sampled_from([0.02, 0.1, 0.5])
    )
    .map(lambda Y: Y[:, Y.any(axis=0)])
    .filter(lambda Y: Y.shape[1] > 0)
)


def epoch(rule, seed=0, device="cpu"):
    batches = rule(torch.Generator(device).manual_seed(seed))
    assert all(batch.device.type == device for batch in batches)
    return [batch.cpu().numpy() for batch in batches]


class Checked(MultilabelBatches):
    """Looks at each batch together with the labels that its rows were drawn for."""

    def _filled(self, batch, drawn, K, rng):
        filled = super()._filled(batch, drawn, K, rng)
        rows = filled.numpy()
        assert set(batch.tolist()) <= set(rows), "a row that was drawn is lost"
        assert len(np.unique(rows)) == len(rows), "a row stands twice in a batch"
        assert self.y[np.arange(len(self.y)), drawn].all(), "a row was drawn for a label that it does not have"
        labels = np.unique(drawn[batch])
        held = self.y[rows][:, labels].sum(axis=0)
        assert (held >= np.minimum(K, self.counts[labels])).all(), "a label has fewer than K samples"
        assert len(labels) == min(self.batch_size // self.samples_per_class, len(np.unique(drawn)))
        assert len(rows) <= self.batch_size
        return filled


@settings(deadline=None, max_examples=60)
@given(Y=rows_of_labels, K=st.integers(2, 5), P=st.integers(2, 6), seed=st.integers(0, 99))
def test_batches_hold_k_samples_of_each_of_p_labels(Y, K, P, seed):
    rule = Checked(Y, P * K, K)
    assert len(epoch(rule, seed)) > 0
    assert len(epoch(rule, seed + 1)) > 0


def test_an_epoch_holds_every_row_about_once():
    Y = make_labels(600, 30, 0, 0.07)
    counts = np.bincount(np.concatenate(epoch(MultilabelBatches(Y, 32, 4))), minlength=600)
    assert (counts > 0).mean() > 0.95
    assert counts.mean() < 1.2


def test_a_rare_label_keeps_its_rows():
    """Six of 600 samples have the rare label, all of them three frequent ones too: they are drawn for the rare one."""
    Y = make_labels(600, 10, 0, 0.2)
    rare = np.arange(600) < 6
    Y = np.column_stack([rare, Y | (rare[:, None] & (np.arange(10) < 3))])
    shares = []

    class Seen(MultilabelBatches):
        def _filled(self, batch, drawn, K, rng):
            shares.append((drawn[rare] == 0).mean())
            return super()._filled(batch, drawn, K, rng)

    rule = Seen(Y, 32, 4)
    held = [rare[batch].sum() for seed in range(10) for batch in epoch(rule, seed)]
    assert np.mean(shares) > 0.6  # evenly it would be a quarter
    assert np.mean([n >= 4 for n in held if n]) > 0.5  # of the batches with one of them, few would have four by chance


def test_rows_without_a_label_are_drawn_too():
    Y = make_labels(200, 5, 0, 0.2)
    without = ~Y.any(axis=1)
    rule = MultilabelBatches(Y, 24, 4)
    seen = np.unique(np.concatenate([np.concatenate(epoch(rule, seed)) for seed in range(4)]))
    assert without.sum() > 20
    assert np.isin(np.flatnonzero(without), seen).all()


def test_batches_are_those_of_the_seed(device):
    Y = make_labels(200, 5, 0)
    first, again, other = (epoch(MultilabelBatches(Y, 24, 4), seed, device) for seed in (0, 0, 1))
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert (
        len(np.concatenate(first)) != len(np.concatenate(other))
        or (np.concatenate(first) != np.concatenate(other)).any()
    )


# ---- measures

RETRIEVAL = {
    "recall_at_1": recall_at_k,
    "precision_at_1": precision_at_1,
    "r_precision": r_precision,
    "map_at_r": map_at_r,
    "map": mean_average_precision,
    "mrr": mean_reciprocal_rank,
}


def measures_by_hand(X, Y, gallery=None, gallery_y=None, gallery_index=None, groups=None, gallery_groups=None):
    """Return the measures by Euclidean distance, query by query; ties with rows that do not match count against it."""
    Z, z, others = (X, Y, groups) if gallery is None else (gallery, gallery_y, gallery_groups)
    own = np.arange(len(X)) if gallery is None else gallery_index
    values = []
    for i, query in enumerate(X):
        is_match = np.array([(Y[i] & row).any() for row in z])
        counts = np.ones(len(Z), dtype=bool)
        if own is not None and own[i] >= 0:
            counts[own[i]] = False
        if groups is not None:
            counts &= ~(is_match & (others == groups[i]))
        distance = ((Z - query) ** 2).sum(axis=1)
        order = np.lexsort((is_match, distance))
        hits = is_match[order[counts[order]]]
        R = hits.sum()
        if R:
            precision = hits.cumsum() / np.arange(1, len(hits) + 1)
            values.append(
                [
                    *(hits[:k].any() for k in (1, 3)),
                    hits[0],
                    hits[:R].mean(),
                    (precision * hits)[:R].sum() / R,
                    (precision * hits).sum() / R,
                    1 / (1 + hits.argmax()),
                ]
            )
    names = ["recall_at_1", "recall_at_3", "precision_at_1", "r_precision", "map_at_r", "map", "mrr"]
    means = np.mean(values, axis=0) if values else np.full(7, np.nan)
    return dict(zip(names, means, strict=True)), len(X) - len(values)


@pytest.fixture(params=[5, 1024])
def tile(request, monkeypatch):
    """Size of a tile, smaller and larger than the data."""
    for name, value in (("CPU_TILE", request.param), ("GPU_TILE", request.param), ("_MAX_HELD", 40 * request.param)):
        monkeypatch.setattr(_rows, name, value)


def make_points(n, seed):
    """Return points on a small grid, where many distances are equal."""
    return np.random.default_rng(seed).integers(0, 4, size=(n, 3)).astype(np.float64)


@pytest.mark.filterwarnings("ignore:Most queries have an identical row")
@pytest.mark.parametrize("search", ["themselves", "gallery", "own rows in the gallery"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("n_labels", [2, 7, 200])
@pytest.mark.usefixtures("tile")
def test_measures_are_those_by_hand(search, grouped, n_labels):
    rng = np.random.default_rng(n_labels)
    for seed in range(2):
        n, size = 17, 23
        X, Y = make_points(n, seed), make_labels(n, n_labels, seed)
        options = {}
        if search != "themselves":
            options = {"gallery": make_points(size, seed + 9), "gallery_y": make_labels(size, n_labels, seed + 9)}
        if search == "own rows in the gallery":
            options["gallery_index"] = rng.integers(-1, size, n)
        if grouped:
            options["groups"] = rng.integers(3, size=n)
            if search != "themselves":
                options["gallery_groups"] = rng.integers(3, size=size)
        expected, n_left_out = measures_by_hand(X, Y, **options)
        report = retrieval_report(X, Y, k=(1, 3), metric="euclidean", **options)
        assert report.pop("n_left_out") == n_left_out
        assert (report.pop("n_queries"), report.pop("n_gallery")) == (n, n if search == "themselves" else size)
        assert report == pytest.approx(expected, nan_ok=True)
        for name in ("precision_at_1", "r_precision", "mrr"):
            value = RETRIEVAL[name](X, Y, metric="euclidean", **options)
            assert value == pytest.approx(expected[name], nan_ok=True), name
        found = recall_at_k(X, Y, [1, 3], metric="euclidean", **options)
        np.testing.assert_allclose(found, [expected["recall_at_1"], expected["recall_at_3"]])


@pytest.mark.parametrize("name", RETRIEVAL)
def test_measures_of_one_label_each_are_those_of_classes(name):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 4)), rng.integers(6, size=80)
    Y = np.eye(6, dtype=int)[y]
    function = RETRIEVAL[name]
    expected = function(X, y)
    assert function(X, Y) == pytest.approx(expected)
    assert function(torch.tensor(X), torch.tensor(Y)) == pytest.approx(expected)
    assert function(X, sparse.csr_array(Y)) == pytest.approx(expected)
    assert function(X, pd.DataFrame(Y)) == pytest.approx(expected)
    assert function(X, np.asfortranarray(Y)) == pytest.approx(expected)
    gallery = {"gallery": X[30:], "gallery_y": y[30:]}
    expected = function(X[:30], y[:30], **gallery)
    assert function(X[:30], Y[:30], gallery=X[30:], gallery_y=Y[30:]) == pytest.approx(expected)


def test_queries_without_a_match_are_left_out_with_a_warning():
    X = np.array([[0.0], [1.0], [3.0], [5.0], [7.0]])
    Y = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]])
    with pytest.warns(
        UserWarning, match="3 of 5 queries are left out: the gallery has no other row with one of their l"
    ):
        assert recall_at_k(X, Y, metric="euclidean") == 1
    with pytest.warns(UserWarning, match="5 of 5 .* no other row with one of their labels in another group"):
        assert np.isnan(recall_at_k(X, Y, groups=np.zeros(5), metric="euclidean"))


def test_queries_that_find_themselves_are_noticed(tagged):
    X, Y = tagged
    with pytest.warns(UserWarning, match="Most queries have an identical row"):
        recall_at_k(X[:20], Y[:20], gallery=X, gallery_y=Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*queries are left out")
        recall_at_k(X[:20], Y[:20], gallery=X[20:], gallery_y=Y[20:])
        # Identical rows without a label match nothing.
        none = np.zeros((20, N_LABELS), dtype=bool)
        assert np.isnan(recall_at_k(X[:20], none, gallery=X[:20], gallery_y=none))


def test_queries_and_gallery_need_the_same_labels(tagged):
    X, Y = tagged
    with pytest.raises(ValueError, match=r"the same labels as columns.*got shapes \(60, 5\) and \(60, 4\)"):
        recall_at_k(X, Y, gallery=X, gallery_y=Y[:, :4])
    with pytest.raises(ValueError, match=r"got shapes \(60, 5\) and \(60,\)"):
        recall_at_k(X, Y, gallery=X, gallery_y=np.arange(60))
    frame = pd.DataFrame(Y, columns=list("abcde"))
    with pytest.raises(ValueError, match=r"the same columns in the same order.*gallery_y\[y.columns\]"):
        recall_at_k(X, frame, gallery=X, gallery_y=frame[list("edcba")])


def test_scorers(tagged):
    X, Y = tagged
    pca = PCA(4).fit(X)
    Z = pca.transform(X)
    assert RecallAtK(1)(pca, X, Y) == recall_at_k(Z, Y)
    assert RetrievalScorer(("map", "mrr"))(pca, X, Y) == {
        "map": mean_average_precision(Z, Y),
        "mrr": mean_reciprocal_rank(Z, Y),
    }
    with pytest.raises(ValueError, match=r"compare clusters with classes.*got y of shape \(60, 5\).*Leave them out"):
        RetrievalScorer(("map", "nmi"))(pca, X, Y)
    assert "nmi" not in retrieval_report(Z, Y)
    np.testing.assert_allclose(RecallCurveDisplay.from_embeddings(Z, Y, k=(1, 2)).recall, recall_at_k(Z, Y, (1, 2)))


# ---- embedders

NEEDING = {
    "AngularEmbedder",
    "ArcFaceEmbedder",
    "ClusteringEmbedder",
    "HTLEmbedder",
    "LargeMarginSoftmaxEmbedder",
    "MagnetEmbedder",
    "MarginEmbedder",
    "NPairsEmbedder",
    "NormSoftmaxEmbedder",
    "ProxyAnchorEmbedder",
    "ProxyNCAEmbedder",
    "SSTEmbedder",
    "SmartMiningEmbedder",
    "SoftTripleEmbedder",
}
EMBEDDERS = [
    name
    for name in skdml.__all__
    if isinstance(value := getattr(skdml, name), type) and issubclass(value, BaseEmbedder)
]


def make_embedder(name, **options):
    return getattr(skdml, name)(max_epochs=2, batch_size=24, hidden_layer_sizes=(8,), random_state=0, **options)


@pytest.mark.parametrize("name", sorted(set(EMBEDDERS) - NEEDING))
def test_embedders_learn_from_labels(tagged, name):
    X, Y = tagged
    embedder = make_embedder(name).set_params(max_epochs=5).fit(X, Y)
    assert embedder.classes_.tolist() == [0, 1, 2, 3, 4]
    Z = embedder.transform(X)
    assert embedder.score(X, Y) == recall_at_k(Z, Y)
    assert np.isfinite(Z).all()
    # The order of the columns and columns without a sample change nothing.
    others = np.column_stack([np.zeros(len(Y), dtype=bool), Y])
    np.testing.assert_array_equal(make_embedder(name).set_params(max_epochs=5).fit(X, others).transform(X), Z)


@pytest.mark.parametrize("name", sorted(NEEDING))
def test_embedders_that_need_classes_say_why(tagged, name):
    embedder = make_embedder(name)
    with pytest.raises(ValueError, match=rf"^{name} \w+ .* takes one class label per sample.*\(60, 5\).*such as RAW"):
        embedder.fit(*tagged)
    assert not hasattr(embedder, "network_")


def test_training_raises_the_measures(tagged):
    """Labels that some columns tell apart, among columns of noise."""
    rng = np.random.default_rng(1)
    Y = make_labels(400, 12, 1, 0.12)
    X = np.hstack([Y @ rng.normal(size=(12, 12)), 3 * rng.normal(size=(400, 30))]).astype(np.float32)
    embedder = SupConEmbedder(max_epochs=10, random_state=0).fit(X[:300], Y[:300])
    assert map_at_r(embedder.transform(X[300:]), Y[300:]) > map_at_r(X[300:], Y[300:]) + 0.1


def test_columns_of_a_frame_are_the_classes(tagged, tmp_path):
    X, Y = tagged
    names = ["tree", "water", "hand", "mouth", "sun"]
    embedder = make_embedder("RAWEmbedder").fit(X, pd.DataFrame(Y, columns=names))
    assert embedder.classes_.tolist() == names
    np.testing.assert_array_equal(embedder.transform(X), make_embedder("RAWEmbedder").fit(X, Y).transform(X))
    embedder.save(tmp_path / "embedder")
    loaded = skdml.load(tmp_path / "embedder")
    assert loaded.classes_.tolist() == names
    np.testing.assert_array_equal(loaded.transform(X), embedder.transform(X))
    ensemble = FoldEnsembleEmbedder(make_embedder("RAWEmbedder"), cv=KFold(2)).fit(X, pd.DataFrame(Y, columns=names))
    assert [e.classes_.tolist() for e in ensemble.estimators_] == [names, names]
    assert ensemble.score(X, Y) > 0


def test_going_on_needs_the_same_labels(tagged):
    X, Y = tagged
    frame = pd.DataFrame(Y, columns=list("abcde"))
    embedder = make_embedder("RAWEmbedder").set_params(batch_size=8)
    embedder.partial_fit(X, frame).partial_fit(X[:30], frame[:30])
    embedder.partial_fit(X[Y[:, 0]], frame[Y[:, 0]])  # of which all share a label
    assert embedder.n_iter_ == 3
    before = vars(embedder).copy()
    with pytest.raises(ValueError, match=r"the columns of y must be its 5 classes in their order; got 5 columns"):
        embedder.partial_fit(X, frame[list("edcba")])
    with pytest.raises(ValueError, match=r"got 4 columns"):
        embedder.set_params(warm_start=True).fit(X, frame[list("abcd")])
    with pytest.raises(ValueError, match=r"leave classes out, and pass columns of zeros for labels to come"):
        embedder.partial_fit(X, frame, classes=list("abcde"))
    embedder.set_params(warm_start=False)
    assert all(vars(embedder)[name] is value for name, value in before.items())
    embedder.set_params(warm_start=True).fit(X, frame)
    assert embedder.n_iter_ == 5


def test_weights(tagged):
    X, Y = tagged
    w = (np.arange(len(X)) < 30).astype(float)
    weighted = make_embedder("ContrastiveEmbedder").fit(X, Y, sample_weight=w).transform(X)
    assert (weighted != make_embedder("ContrastiveEmbedder").fit(X, Y).transform(X)).any()
    ones = make_embedder("ContrastiveEmbedder").fit(X, Y, sample_weight=np.ones(60)).transform(X)
    np.testing.assert_allclose(ones, make_embedder("ContrastiveEmbedder").fit(X, Y).transform(X), atol=1e-5)


@pytest.mark.parametrize("n_labels", [8, 60])
@pytest.mark.parametrize("seed", range(3))
def test_every_sample_held_out_has_a_match_there(seed, n_labels):
    Y = make_labels(200, n_labels, seed, 1.6 / n_labels)
    train, valid = hold_out(Y, "samples", 0.1, np.random.RandomState(seed))
    assert sorted([*train, *valid]) == list(range(200))
    assert 20 <= len(valid) <= 26
    assert masks_by_hand(Y[valid])[0].any(axis=1).all()
    with pytest.raises(ValueError, match="no class has four samples"):
        hold_out(np.eye(4, dtype=bool), "samples", 0.1, np.random.RandomState(seed))


def test_early_stopping(tagged):
    X, Y = tagged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="No epoch was better")  # but none says that queries are left out
        embedder = make_embedder("TripletEmbedder", early_stopping=True, validation_fraction=0.3).fit(X, Y)
    assert 0 <= embedder.history_[-1]["validation_recall_at_1"] <= 1
    with pytest.raises(ValueError, match="Set validation_split='samples'"):
        embedder.set_params(validation_split="classes").fit(X, Y)


def test_grid_search(tagged):
    X, Y = tagged
    search = GridSearchCV(make_embedder("RAWEmbedder"), {"beta": [10.0, 50.0]}, cv=KFold(2), scoring=RecallAtK(1))
    assert 0 < search.fit(X, Y).best_score_ <= 1


def test_the_data_must_hold_positives_and_negatives(tagged):
    X, Y = tagged
    with pytest.raises(ValueError, match="no label has two samples"):
        make_embedder("RAWEmbedder").fit(X[:5], np.eye(5))
    with pytest.raises(ValueError, match="no label has two samples"):
        make_embedder("RAWEmbedder").fit(X, np.zeros((60, 5)))
    with pytest.raises(ValueError, match=r"any two samples of y share one\. Leave out labels"):
        make_embedder("RAWEmbedder").fit(X, Y | (np.arange(5) == 2))
    alone = np.column_stack([Y, np.arange(60) == np.flatnonzero(~Y.any(axis=1))[0]])
    with pytest.warns(UserWarning, match="1 of 60 samples have only labels of one sample and serve only as negatives"):
        make_embedder("RAWEmbedder").fit(X, alone)


def test_columns_need_not_be_told_from_one_another(tagged):
    """A column (n, 1) is one class per sample, as before; two are labels, also with one in each row."""
    X, Y = tagged
    with pytest.warns(DataConversionWarning):
        column = make_embedder("RAWEmbedder").fit(X, Y[:, :1].astype(int))
    assert column.classes_.tolist() == [0, 1]
    assert make_embedder("RAWEmbedder").fit(X, np.eye(2)[Y[:, 0].astype(int)]).classes_.tolist() == [0, 1]


def test_any_loss_gets_the_labels(tagged):
    X, Y = tagged
    seen = []

    def loss(embeddings, y):
        seen.append(y)
        return losses.ContrastiveLoss()(embeddings, y)

    MetricEmbedder(loss=loss, max_epochs=1, batch_size=24).fit(X, Y)
    assert all(y.dtype == torch.bool and y.shape[1] == N_LABELS for y in seen)
    with pytest.raises(ValueError, match="MetricEmbedder forms one pair of each class"):
        MetricEmbedder(loss=losses.NPairsLoss()).fit(X, Y)
    with pytest.raises(ValueError, match="batches='local'"):
        MetricEmbedder(batches="local").fit(X, Y)
