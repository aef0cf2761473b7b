"""What the displays show: the right samples, told apart by more than color, at any kind of input."""

import sys
from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import PathPatch, Polygon, Rectangle
from PIL import Image
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skdml import NormSoftmaxEmbedder, SoftTripleEmbedder
from skdml.inspection import (
    CentersDisplay,
    EmbeddingDisplay,
    HistoryDisplay,
    PairWeightDisplay,
    RecallCurveDisplay,
    RetrievalDisplay,
)
from skdml.inspection._drawing import COLORS, MARKERS, draw_tile
from skdml.losses import RAWLoss
from skdml.metrics import recall_at_k

GREEN, RED = "#009e73", "#d55e00"


@pytest.fixture(autouse=True)
def _agg():
    with mpl.rc_context({"backend": "agg"}):
        yield
        plt.close("all")


class Given:
    """A transformer of anything to the embeddings it was given."""

    def __init__(self, Z):
        self.Z = Z

    def transform(self, X):
        return self.Z


@pytest.fixture
def Z(blobs):
    """Embeddings (60, 6) of four classes with 15 samples each, as in blobs."""
    return blobs[0]


@pytest.fixture
def y(blobs):
    return blobs[1]


def global_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002


def frames(ax):
    """List (color, whether solid) of the frames of tiles."""
    shown = [patch for patch in ax.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    return [(to_hex(patch.get_edgecolor()), patch.get_linestyle() in ("-", "solid")) for patch in shown]


def texts_in(ax):
    return [patch for patch in ax.patches if isinstance(patch, PathPatch)]


# ---- retrieval


def test_neighbors_are_the_nearest_by_cosine_without_the_query(Z, y):
    display = RetrievalDisplay.from_embeddings(Z, y, queries=[3, 40], n_neighbors=7)
    unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    for query, neighbors, is_correct in zip((3, 40), display.neighbors, display.is_correct, strict=True):
        order = [row for row in np.argsort(-(unit @ unit[query])) if row != query]
        assert neighbors.tolist() == order[:7]
        assert is_correct.tolist() == (y[order[:7]] == y[query]).tolist()
    euclidean = RetrievalDisplay.from_embeddings(Z, y, queries=[3], n_neighbors=5, metric="euclidean").neighbors[0]
    order = np.argsort(np.linalg.norm(Z - Z[3], axis=1))
    assert euclidean.tolist() == order[1:6].tolist()


def test_among_equal_rows_the_query_is_no_neighbor_of_its_own():
    display = RetrievalDisplay.from_embeddings(np.ones((20, 3)), np.arange(20) % 2, queries=20, n_neighbors=4)
    assert display.neighbors.shape == (20, 4)
    assert not (display.neighbors == display.queries[:, None]).any()


def test_queries_do_not_find_their_own_rows_in_a_gallery(Z, y):
    order = np.random.default_rng(0).permutation(60)
    own = np.argsort(order)
    search = {"gallery": Z[order], "gallery_y": y[order], "gallery_index": own}
    expected = RetrievalDisplay.from_embeddings(Z, y, queries=[3, 40], n_neighbors=7)
    display = RetrievalDisplay.from_embeddings(Z, y, queries=[3, 40], n_neighbors=7, **search)
    assert order[display.neighbors].tolist() == expected.neighbors.tolist()
    shown = RetrievalDisplay.from_estimator(FunctionTransformer(), Z, y, queries=[3, 40], n_neighbors=7, **search)
    assert shown.neighbors.tolist() == display.neighbors.tolist()
    alone = {"gallery": Z[:2], "gallery_y": y[[0, 30]], "gallery_index": [-1, 0]}
    drawn = RetrievalDisplay.from_embeddings(Z[:2], y[:2], queries=2, n_neighbors=1, **alone)
    assert drawn.queries.tolist() == [0]
    with pytest.raises(ValueError, match="gallery_index needs a gallery"):
        RetrievalDisplay.from_embeddings(Z, y, gallery_index=own)
    with pytest.raises(ValueError, match="or -1 for none, got 60"):
        RetrievalDisplay.from_embeddings(Z, y, **search | {"gallery_index": own + 1})


def test_frames_differ_by_color_line_and_mark(Z, y):
    display = RetrievalDisplay.from_embeddings(Z, y, queries=3, n_neighbors=20, random_state=0)
    n_correct, n_wrong = display.is_correct.sum(), (~display.is_correct).sum()
    assert n_correct > 5
    assert n_wrong > 5
    shown = frames(display.ax_)
    assert shown.count((GREEN, True)) == n_correct
    assert shown.count((RED, False)) == n_wrong
    assert shown.count(("#000000", True)) == 3  # the queries
    marks = [len(patch.get_xy()) for patch in display.ax_.patches if isinstance(patch, Polygon)]
    assert (marks.count(7), marks.count(13)) == (n_correct, n_wrong)  # the corners of closed ticks and crosses
    assert [label.get_text() for label in display.ax_.get_xticklabels()] == ["query", *map(str, range(1, 21))]
    assert display.figure_ is display.ax_.figure


@pytest.mark.parametrize(
    "X",
    [
        np.zeros((60, 5)),
        sparse.csr_array(np.eye(60)),
        np.zeros((60, 4, 4)),  # sequences or the like, for a backbone
        np.zeros((60, 2, 8, 8), np.float32),  # two channels: no picture
    ],
    ids=lambda X: f"{type(X).__name__}{X.shape}",
)
def test_without_images_it_shows_rows_and_classes_and_says_so(Z, y, X):
    display = RetrievalDisplay.from_estimator(Given(Z), X, y, queries=[3], n_neighbors=2)
    assert display.query_tiles == ["row 3\nclass 0"]
    assert display.neighbor_tiles[0] == [f"row {row}\nclass {y[row]}" for row in display.neighbors[0]]
    assert "no images: names and classes" in display.ax_.get_xlabel()
    assert display.ax_.get_title() == "Given"
    assert not display.ax_.images


def test_texts_are_shown_with_the_class(Z, y):
    names = np.array(["ant", "bee", "cat", "dog"])[y]
    texts = [f"picture number {row} of a very long title" for row in range(60)]
    display = RetrievalDisplay.from_embeddings(Z, names, texts=texts, queries=[59], n_neighbors=1)
    assert display.query_tiles == ["picture\nnumber 59 …\ndog"]
    RetrievalDisplay.from_embeddings(Z, y, texts=[""] * 60, queries=[3], n_neighbors=1).figure_.canvas.draw()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((60, 4, 6), np.uint8), ((60, 4, 6, 1), np.uint8), ((60, 6, 4, 3), np.uint8), ((60, 1, 4, 6), np.float32)],
)
def test_images_are_shown_as_they_are(Z, y, shape, dtype):
    images = np.random.default_rng(0).integers(0, 256, shape).astype(dtype)
    if dtype == np.float32:
        images = images / 50 - 2
    display = RetrievalDisplay.from_estimator(Given(Z), images, y, queries=[5, 9], n_neighbors=1, name="mine")
    rows = [5, display.neighbors[0, 0], 9, display.neighbors[1, 0]]
    expected = images[rows]
    if dtype == np.float32:  # from the lowest to the highest number of each
        low, high = (f(expected, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
        expected = (expected - low) / (high - low) * 255
    for image, want in zip(display.ax_.images, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(image.get_array()).squeeze(), want.squeeze(), atol=0.51 if dtype == np.float32 else 0
        )
        left, right, bottom, top = image.get_extent()
        assert (right - left) / (top - bottom) == pytest.approx(want.squeeze().shape[1] / want.squeeze().shape[0])
        assert image.get_clim() == (0, 255)
    assert "no images" not in display.ax_.get_xlabel()
    assert display.ax_.get_title() == "mine"


def test_of_image_files_only_those_shown_are_opened(Z, y, tmp_path):
    paths = np.array([tmp_path / f"{row}.png" for row in range(60)])
    nearest = RetrievalDisplay.from_embeddings(Z, y, queries=[7], n_neighbors=2).neighbors[0]
    for row in (7, *nearest):
        Image.new("RGB", (600, 300), (row, 0, 0)).save(paths[row])
    for X in (paths, paths.astype(str), paths.tolist()):
        display = RetrievalDisplay.from_estimator(Given(Z), X, y, queries=[7], n_neighbors=2)
        assert display.query_tiles[0].shape == (128, 256, 3)
        assert [tile[0, 0].tolist() for tile in display.neighbor_tiles[0]] == [[row, 0, 0] for row in nearest]
    with pytest.raises(ValueError, match=r"\d+\.png does not exist"):
        RetrievalDisplay.from_estimator(Given(Z), paths, y, queries=[7], n_neighbors=5)


def test_gallery(Z, y):
    images = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((3, 3), np.uint8)
    gallery, gallery_y, gallery_images = Z[:40], y[:40], images[:40] + np.uint8(100)
    display = RetrievalDisplay.from_embeddings(
        Z,
        y,
        images=images,
        gallery=gallery,
        gallery_y=gallery_y,
        gallery_images=gallery_images,
        queries=[0],
        n_neighbors=3,
    )
    assert display.neighbors[0, 0] == 0  # the same vector is another sample there
    assert display.query_tiles[0][0, 0] == 0
    assert [tile[0, 0] for tile in display.neighbor_tiles[0]] == (display.neighbors[0] + 100).tolist()
    assert set(
        RetrievalDisplay.from_embeddings(Z, y, gallery=gallery, gallery_y=gallery_y, queries=60, n_neighbors=1).queries
    ) == set(
        range(45)  # class 3 is not in the gallery
    )
    by_estimator = RetrievalDisplay.from_estimator(Given(Z), images, y, gallery=images, gallery_y=y, queries=[0, 2])
    assert by_estimator.neighbors[:, 0].tolist() == [0, 2]
    assert by_estimator.neighbor_tiles[0][0].shape == (3, 3)


def test_queries_have_something_to_find_and_follow_the_seed(Z, y):
    y = np.where(np.arange(60) < 40, np.arange(60) + 10, y)  # 40 classes of one sample
    display = RetrievalDisplay.from_embeddings(Z, y, queries=100, n_neighbors=1)
    assert display.queries.tolist() == list(range(40, 60))
    state = global_state()
    first, second, other = (
        RetrievalDisplay.from_embeddings(Z, y, queries=6, n_neighbors=1, random_state=seed).queries.tolist()
        for seed in (0, 0, 1)
    )
    assert first == second != other
    assert global_state() == state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_neighbors": 60}, r"n_neighbors must be in 1\.\.59, .* samples to find; got 60"),
        ({"n_neighbors": 0}, r"n_neighbors must be in 1\.\.59"),
        ({"queries": [60]}, r"queries must be rows in 0\.\.59; got \[60\]"),
        ({"queries": [-1]}, r"queries must be rows in 0\.\.59"),
        ({"queries": 0}, "queries must be at least 1"),
        ({"y": np.zeros(59)}, "y must hold one entry for each of the 60 embeddings, got 59"),
        ({"texts": ["a"]}, "texts must hold one entry for each of the 60 embeddings, got 1"),
        ({"y": 3}, "one class label per sample.* got a value of type int"),
        ({"y": np.zeros((60, 2))}, r"got shape \(60, 2\)"),
        ({"y": np.arange(60)}, "no class has two samples.* pass rows as queries"),
        ({"gallery": np.ones((9, 6)), "gallery_y": np.full(9, 7)}, "the gallery has other classes"),
        ({"gallery": np.ones((9, 6))}, "belong together"),
        ({"images": np.zeros((60, 8))}, r"images must be uint8 .* got shape \(60, 8\) and dtype float64"),
        ({"images": np.zeros((59, 8, 8), np.uint8)}, "images must hold one entry for each of the 60 .*, got 59"),
        ({"embeddings": np.full((60, 6), np.nan)}, "finite numbers"),
        ({"embeddings": np.ones(60)}, r"got shape \(60,\)"),
    ],
)
def test_bad_input_of_the_retrieval(Z, y, changes, message):
    with pytest.raises(ValueError, match=message):
        RetrievalDisplay.from_embeddings(**{"embeddings": Z, "y": y, **changes})


# ---- tiles


def test_text_stays_in_its_tile_and_above_the_mark(Z, y):
    long = ["WWWWWWWWWWWWWWWWWWWWWWWWW"] * 60
    labels = [f"{text}{label}" for text, label in zip(long, y, strict=True)]
    display = RetrievalDisplay.from_embeddings(Z, labels, texts=long, queries=[0], n_neighbors=1)
    assert len(texts_in(display.ax_)) == 2 * 4
    to_data = display.ax_.transData.inverted()
    for i, patch in enumerate(texts_in(display.ax_)):
        box = patch.get_window_extent().transformed(to_data)
        center = 0 if i < 4 else 1.2
        assert center - 0.43 < box.x0 < box.x1 < center + 0.43
        assert -0.43 + 0.22 < box.y0 < box.y1 < 0.43


def test_tile_keeps_the_aspect_of_the_image():
    _, ax = plt.subplots()
    draw_tile(ax, 2, 3, np.zeros((10, 40), np.uint8), side=2)
    assert ax.images[0].get_extent() == pytest.approx((1.14, 2.86, 3 - 0.215, 3 + 0.215))


# ---- the map


def test_map_shows_every_sample_in_the_style_of_its_class(Z, y):
    display = EmbeddingDisplay.from_embeddings(Z, y, random_state=0)
    assert sorted(display.rows) == list(range(60))
    np.testing.assert_array_equal(display.y, y[display.rows])
    for c, collection in enumerate(display.ax_.collections):
        np.testing.assert_allclose(collection.get_offsets(), display.points[display.y == c])
        assert to_hex(collection.get_facecolor()) == COLORS[c].lower()
    assert [t.get_text() for t in display.ax_.get_legend().get_texts()] == [f"class {c}" for c in range(4)]
    assert display.thumbnails is None
    assert display.ax_.get_xlabel() == "t-SNE of 60 embeddings, 4 classes"


def test_map_keeps_classes_together(Z, y):
    display = EmbeddingDisplay.from_embeddings(Z, y, random_state=0)
    assert recall_at_k(display.points, display.y, metric="euclidean") > 0.9


def test_map_follows_the_seed_and_touches_no_other(Z, y):
    state = global_state()
    first, second = (EmbeddingDisplay.from_embeddings(Z, y, subsample=20, random_state=3) for _ in range(2))
    np.testing.assert_array_equal(first.points, second.points)
    np.testing.assert_array_equal(first.rows, second.rows)
    assert len(set(first.rows)) == 20
    assert global_state() == state


def test_thumbnails_do_not_overlap(Z, y):
    images = np.arange(60, dtype=np.uint8)[:, None, None] * np.ones((5, 5), np.uint8)
    display = EmbeddingDisplay.from_estimator(Given(Z), images, y, random_state=0)
    assert 5 < len(display.ax_.images) == len(display.thumbnails) <= 60
    for i, image in display.thumbnails.items():
        assert image[0, 0] == display.rows[i]
    extents = [image.get_extent() for image in display.ax_.images]
    for (l1, r1, b1, t1), (l2, r2, b2, t2) in combinations(extents, 2):
        assert r1 <= l2 or r2 <= l1 or t1 <= b2 or t2 <= b1
    assert "thumbnails" in display.ax_.get_xlabel()


def test_56_classes_have_styles_of_their_own(Z):
    styles = {(COLORS[c % len(COLORS)], MARKERS[c % len(MARKERS)]) for c in range(56)}
    assert len(styles) == 56
    display = EmbeddingDisplay.from_embeddings(Z, np.arange(60) % 13, random_state=0)
    assert display.ax_.get_legend() is None  # too many classes to name


@pytest.mark.parametrize(
    ("Z", "message"),
    [
        (np.eye(3), "at least 4 samples and 2 components; got 3 and 3"),
        (np.arange(8.0)[:, None], "at least 4 samples and 2 components; got 8 and 1"),
        (np.ones((30, 4)), "all equal.* collapsed"),
    ],
)
def test_bad_input_of_the_map(Z, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingDisplay.from_embeddings(Z, np.zeros(len(Z)))


def test_map_of_few_samples():
    assert EmbeddingDisplay.from_embeddings(1e-30 * np.eye(4), [0, 0, 1, 1], random_state=0).points.shape == (4, 2)


# ---- Recall@K


def test_recall_curves_differ_by_color_line_and_marker(Z, y):
    first = RecallCurveDisplay.from_embeddings(Z, y, k=[1, 3, 9])
    second = RecallCurveDisplay.from_estimator(Given(Z[:, :1]), None, y, k=(1, 3, 9), ax=first.ax_)
    np.testing.assert_array_equal(first.line_.get_ydata(), recall_at_k(Z, y, [1, 3, 9]))
    np.testing.assert_array_equal(second.line_.get_xdata(), [1, 3, 9])
    np.testing.assert_array_equal(second.recall, recall_at_k(Z[:, :1], y, [1, 3, 9]))
    for get in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(first.line_, get)() != getattr(second.line_, get)()
    labels = [text.get_text() for text in first.ax_.get_legend().get_texts()]
    assert labels == [f"Recall@1 = {first.recall[0]:.2f}", f"Given (Recall@1 = {second.recall[0]:.2f})"]


def test_recall_curve_leaves_out_own_rows_and_groups(Z, y):
    groups = np.arange(60) % 3
    search = {"gallery": Z, "gallery_y": y, "gallery_index": np.arange(20)}
    search |= {"groups": groups[:20], "gallery_groups": groups}
    expected = recall_at_k(Z[:20], y[:20], [1, 3], **search).tolist()
    assert RecallCurveDisplay.from_embeddings(Z[:20], y[:20], k=[1, 3], **search).recall.tolist() == expected
    identity = FunctionTransformer()
    shown = RecallCurveDisplay.from_estimator(identity, Z[:20], y[:20], k=[1, 3], **search)
    assert shown.recall.tolist() == expected


def test_recall_curve_over_a_gallery(Z, y):
    display = RecallCurveDisplay.from_embeddings(
        Z[::2], y[::2], k=2, gallery=Z[1::2], gallery_y=y[1::2], metric="euclidean"
    )
    assert display.recall.tolist() == [
        recall_at_k(Z[::2], y[::2], 2, gallery=Z[1::2], gallery_y=y[1::2], metric="euclidean")
    ]


# ---- centers


def test_centers_by_hand():
    """Two directions of one class; the third center coincides with the first, the fourth is nobody's nearest."""
    Z = np.array([[1, 0.01], [1, 0.2], [1, -0.1], [0, 1], [0.1, 1], [-1, 0]])
    y = np.array(["a"] * 5 + ["b"])
    W = [[0, 2], [1, 0], [1, 0.01], [-1, -1]]
    display = CentersDisplay.from_embeddings(Z, y, {"a": W, "b": [[0, 1]]}, n_samples=4)
    assert display.classes == ["a", "b"]
    assert display.sizes == [[3, 2, 0], [1]]
    assert [tile.split("\n")[0] for tile in display.tiles[0][0]] == ["row 0", "row 2", "row 1", "row 4"]
    assert [own.tolist() for own in display.is_own[0]] == [
        [True] * 3 + [False],
        [True, True, False, False],
        [False] * 4,
    ]
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == [
        "a\n3 distinct centers",
        "b\n1 distinct center",
    ]
    shown = frames(display.ax_)
    assert [is_solid for _, is_solid in shown] == [True] * 3 + [False] + [True] * 2 + [False] * 6 + [True]
    assert len(set(shown)) == 2
    assert "no images" in display.ax_.get_xlabel()


@pytest.fixture(scope="module")
def soft_triple():
    X = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
    y = np.repeat([10, 20, 30, 40], 10)
    return SoftTripleEmbedder(n_centers=3, max_epochs=2, batch_size=20, random_state=0).fit(X, y), X, y


def test_centers_of_an_estimator(soft_triple):
    embedder, X, y = soft_triple
    display = CentersDisplay.from_estimator(embedder, X, y, random_state=0)
    assert display.classes == [10, 20, 30, 40]
    assert [len(sizes) for sizes in display.sizes] == embedder.n_centers_per_class_.tolist()
    for c, sizes, groups in zip(display.classes, display.sizes, display.tiles, strict=True):
        assert sum(sizes) == 10
        assert sizes == sorted(sizes, reverse=True)
        for group in groups:
            assert len(group) == 2
            assert all(any(np.array_equal(tile, image) for image in X[y == c]) for tile in group)
    assert CentersDisplay.from_estimator(embedder, X, y, classes=2, random_state=1).classes == sorted(
        CentersDisplay.from_estimator(embedder, X, y, classes=2, random_state=1).classes
    )
    # Classes without centers are left out.
    assert CentersDisplay.from_estimator(embedder, X, np.where(y == 20, 99, y), classes=9).classes == [10, 30, 40]
    assert CentersDisplay.from_estimator(embedder, X, y, classes=[40, 10]).classes == [40, 10]


def test_bad_input_of_the_centers(soft_triple, blobs):
    embedder, X, y = soft_triple
    with pytest.raises(ValueError, match=r"\[50\] were not in the training data"):
        CentersDisplay.from_estimator(embedder, X, y, classes=[10, 50])
    with pytest.raises(ValueError, match="y shares 0 classes with the training data"):
        CentersDisplay.from_estimator(embedder, X, y + 1)
    with pytest.raises(ValueError, match="Class 20 has centers but no sample in y"):
        CentersDisplay.from_estimator(embedder, X[:5], y[:5], classes=[20])
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        CentersDisplay.from_estimator(embedder, X, y, n_samples=0)
    with pytest.raises(ValueError, match="must hold at least one class"):
        CentersDisplay.from_embeddings(*blobs, {})
    with pytest.raises(ValueError, match=r"must have shape \(n_centers, 6\), .* got \(2, 5\) for class 0"):
        CentersDisplay.from_embeddings(*blobs, {0: np.ones((2, 5))})
    with pytest.raises(TypeError, match=r"PCA has no centers_\. Pass a fitted SoftTripleEmbedder"):
        CentersDisplay.from_estimator(PCA(2).fit(blobs[0]), *blobs)
    with pytest.raises(NotFittedError):
        CentersDisplay.from_estimator(SoftTripleEmbedder(), X, y)


# ---- the history


@pytest.fixture(scope="module")
def stopped():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80, 5)), np.repeat(np.arange(4), 20)
    settings = {"max_epochs": 4, "early_stopping": True, "validation_fraction": 0.4, "random_state": 0}
    return make_pipeline(StandardScaler(), NormSoftmaxEmbedder(**settings)).fit(X, y)


@pytest.mark.parametrize("measure", ["loss", "validation_recall_at_1", "duration"])
def test_history_shows_the_measure_and_the_best_epoch(stopped, measure):
    history = stopped[-1].history_
    display = HistoryDisplay.from_estimator(stopped, measure=measure)
    assert display.line_.get_xdata().tolist() == [1, 2, 3, 4]
    assert display.line_.get_ydata().tolist() == [epoch[measure] for epoch in history]
    best = int(np.argmax([epoch["validation_recall_at_1"] for epoch in history]))
    (circle,) = display.ax_.collections
    assert circle.get_offsets().tolist() == [[best + 1, history[best][measure]]]
    assert "circle: highest validation Recall@1" in display.ax_.get_xlabel()
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["NormSoftmaxEmbedder"]


def test_histories_differ_by_color_and_line(stopped):
    first = HistoryDisplay.from_estimator(stopped)
    second = HistoryDisplay([{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}], name="b").plot(ax=first.ax_)
    assert first.line_.get_color() != second.line_.get_color()
    assert first.line_.get_linestyle() != second.line_.get_linestyle()
    assert len(first.ax_.collections) == 1
    assert "circle" in first.ax_.get_xlabel()


def test_history_of_two_kinds_of_epochs():
    """As after a warm start with early stopping."""
    history = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0, "validation_recall_at_1": 0.0}]
    display = HistoryDisplay(history, measure="validation_recall_at_1").plot()
    np.testing.assert_array_equal(display.line_.get_ydata(), [np.nan, 0.0])
    assert display.ax_.get_legend() is None


def test_bad_input_of_the_history(blobs):
    embedder = NormSoftmaxEmbedder(max_epochs=1, batch_size=30).fit(*blobs)
    with pytest.raises(
        ValueError, match=r"holds \['duration', 'loss'\], not 'validation_recall_at_1'. Fit with early_st"
    ):
        HistoryDisplay.from_estimator(embedder, measure="validation_recall_at_1")
    with pytest.raises(TypeError, match="PCA has no history_"):
        HistoryDisplay.from_estimator(PCA(2).fit(blobs[0]))
    with pytest.raises(NotFittedError):
        HistoryDisplay.from_estimator(NormSoftmaxEmbedder())


# ---- all of them

DISPLAYS = {
    "retrieval": lambda Z, y, ax: RetrievalDisplay.from_embeddings(Z, y, ax=ax),
    "embedding": lambda Z, y, ax: EmbeddingDisplay.from_embeddings(Z, y, ax=ax),
    "recall": lambda Z, y, ax: RecallCurveDisplay.from_embeddings(Z, y, ax=ax),
    "centers": lambda Z, y, ax: CentersDisplay.from_embeddings(Z, y, {0: Z[:2], 3: Z[:1]}, ax=ax),
    "history": lambda Z, y, ax: HistoryDisplay([{"epoch": 1, "loss": 2.0}]).plot(ax=ax),
    "weights": lambda Z, y, ax: PairWeightDisplay.from_loss(RAWLoss(), n_points=3, ax=ax),
}


@pytest.mark.parametrize("name", DISPLAYS)
def test_display_plots_on_given_axes(Z, y, name):
    figure, (ax, other) = plt.subplots(1, 2)
    display = DISPLAYS[name](Z, y, ax)
    assert display.ax_ is ax
    assert display.figure_ is figure
    assert plt.get_fignums() == [figure.number]
    assert not other.has_data()
    # A display can be plotted again.
    again = display.plot()
    assert again is display
    assert display.ax_ is not ax
    display.figure_.canvas.draw()


@pytest.mark.parametrize("name", DISPLAYS)
def test_labels_lie_in_the_figure(Z, y, name):
    figure = DISPLAYS[name](Z, y, None).figure_
    for _ in range(2):  # the layout settles
        figure.canvas.draw()
    box = figure.get_tightbbox()  # inches
    width, height = figure.get_size_inches()
    assert -0.02 < box.x0 < box.x1 < width + 0.02
    assert -0.02 < box.y0 < box.y1 < height + 0.02


@pytest.mark.parametrize("name", DISPLAYS)
def test_matplotlib_is_named_where_it_is_missing(Z, y, name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"Display needs matplotlib: pip install 'skdml\[plot\]'"):
        DISPLAYS[name](Z, y, None)


@pytest.mark.parametrize("display", [RetrievalDisplay, EmbeddingDisplay, RecallCurveDisplay])
def test_estimators_of_scikit_learn(display, blobs):
    X, y = blobs
    pipeline = make_pipeline(StandardScaler(), PCA(3)).set_output(transform="pandas").fit(X)
    assert display.from_estimator(pipeline, X, y).name == "Pipeline"
    with pytest.raises(
        TypeError, match=r"needs an estimator with transform, got KNeighborsClassifier.* pipeline\[:-1\]"
    ):
        display.from_estimator(KNeighborsClassifier().fit(X, y), X, y)
    with pytest.raises(NotFittedError):
        display.from_estimator(StandardScaler(), X, y)


def test_names_that_matplotlib_reads_otherwise(Z, y):
    """It leaves out labels that begin with an underscore, and what stands between dollars is a formula."""
    names = np.array(["_noise", "$1_$", "a long name of a class 1", "a long name of a class 2"])[y]
    display = EmbeddingDisplay.from_embeddings(Z, names, random_state=0)
    display.figure_.canvas.draw()
    labels = [text.get_text().strip() for text in display.ax_.get_legend().get_texts()]
    assert labels == [r"\$1_\$", "_noise", "a long name of a class 1", "a long name of a class 2"]
    texts = np.array(["$10%$20", "$a_$", ""])[np.arange(60) % 3]
    RetrievalDisplay.from_embeddings(Z, names, texts=texts).figure_.canvas.draw()
    RetrievalDisplay.from_embeddings(Z, np.array(["", "b", "c", "d"])[y], texts=[""] * 60).figure_.canvas.draw()
    recall = RecallCurveDisplay.from_embeddings(Z, y, name="_a")
    history = HistoryDisplay([{"epoch": 1, "loss": 2.0}], name="_a").plot()
    assert len(recall.ax_.get_legend().get_texts()) == len(history.ax_.get_legend().get_texts()) == 1


def test_one_epoch_is_a_point():
    display = HistoryDisplay([{"epoch": 1, "loss": 2.0}]).plot()
    assert display.line_.get_marker() == "o"
    assert all(tick == int(tick) for tick in display.ax_.get_xticks())


def test_ticks_are_the_numbers_of_neighbors(Z, y):
    display = RecallCurveDisplay.from_embeddings(Z, y, k=[3, 5, 7])
    assert display.ax_.get_xticks().tolist() == [3, 5, 7]
    RecallCurveDisplay.from_embeddings(Z, y, k=[1, 7], ax=display.ax_)
    assert display.ax_.get_xticks().tolist() == [1, 3, 5, 7]
    RecallCurveDisplay.from_embeddings(Z, y, k=range(1, 40), ax=display.ax_)
    assert len(display.ax_.get_xticks()) < 12
