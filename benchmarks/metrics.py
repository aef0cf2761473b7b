"""Cost of the retrieval measures, as ratios to peers in the same process.

    python benchmarks/metrics.py [--quick]

Each value is the median, over interleaved rounds, of the ratio to the peer's time in the same round. Other load on the
machine distorts it, because the threads of a matrix product wait for the slowest one.
"""

import argparse
import multiprocessing
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.preprocessing import FunctionTransformer

from skdml.metrics import RetrievalScorer, map_at_r, nmi_score, recall_at_k, retrieval_report
from skdml.verification import calibrate_threshold


def make_data(n_samples, n_components, n_classes, spread=0.3):
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(n_samples) % n_classes)
    X = rng.normal(size=(n_samples, n_components)) + spread * rng.normal(size=(n_classes, n_components))[y]
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32), y


def faiss_search(X, k):
    index = faiss.IndexFlatIP(X.shape[1])
    index.add(X)
    index.search(X, k)


def full_product(X, tile=1024):
    """Compute every similarity, in tiles, and nothing else."""
    X, buffer = torch.from_numpy(X), torch.empty(tile, tile)
    for rows in X.split(tile):
        for columns in X.split(tile):
            torch.mm(rows, columns.T, out=buffer[: len(rows), : len(columns)])


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_ratios(ours, peers, n_rounds):
    ratios = []
    for _ in range(n_rounds):
        own = seconds(ours)
        ratios.append([own / seconds(peer) for peer in peers])
    return [statistics.median(column) for column in zip(*ratios, strict=True)]


def peak_growth(function, *args):
    """Call the function; return the peak of physical memory beyond what was in use before, in GiB (Linux)."""
    status = Path("/proc/self/status")

    def resident(key):
        return int(status.read_text().partition(f"{key}:")[2].split()[0]) / 2**20

    before = resident("VmRSS")
    function(*args)
    return resident("VmHWM") - before


def recall_memory(n_samples):
    X, y = make_data(n_samples, 32, n_samples // 5)
    recall_at_k(X[:100], y[:100] % 2)  # load what the first call loads
    return peak_growth(recall_at_k, X, y, [1, 10, 100, 1000])


def map_memory(n_samples):
    X, y = make_data(n_samples, 32, n_samples // 5)
    map_at_r(X[:100], y[:100] % 2)
    return peak_growth(map_at_r, X, y)


def threshold_memory(n_samples):
    X, y = make_data(n_samples, 64, n_samples // 20)
    calibrate_threshold(FunctionTransformer(), X[:100], y[:100] % 2)
    return peak_growth(calibrate_threshold, FunctionTransformer(), X, y)


def in_fresh_process(function, *args):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def report(work, value, bar, unit=""):
    print(f"{work:<64}{value:>7.2f}{unit:<5}{'-' if bar is None else f'<= {bar:.2f}{unit}'}", flush=True)


def main(quick):
    n, n_rounds, n_large = (8_000, 3, 20_000) if quick else (30_000, 5, 100_000)
    X, y = make_data(n, 512, n // 15)
    peers = {"the bare product": lambda: full_product(X)}
    if faiss is None:
        print("faiss is not installed: its rows are left out. pip install faiss-cpu adds them.\n")
    else:
        peers["faiss IndexFlatIP, k=9"] = lambda: faiss_search(X, 9)

    print(f"{torch.get_num_threads()} threads\n{'work':<64}{'value':>7}     target")
    recall_at_k(X[:2000], y[:2000] % 9)
    for measure, ours, bar in (
        ("Recall@{1,2,4,8}", lambda: recall_at_k(X, y, [1, 2, 4, 8]), 0.75),
        ("MAP@R", lambda: map_at_r(X, y), None),
    ):
        for peer, ratio in zip(peers, median_ratios(ours, peers.values(), n_rounds), strict=True):
            report(f"{measure}, {n} x 512, time / {peer}", ratio, bar)

    # The embedding separates the first classes fairly well (MAP@R 0.6 to 1), and the random ones not at all.
    neighbors = RetrievalScorer(("recall_at_1", "recall_at_8", "r_precision", "map_at_r"))
    good = (5, 0.7), (15, 0.5), (30, 0.5), (60, 0.45), (100, 0.45), (300, 0.4), (1000, 0.4), (3000, 0.4), (n // 2, 0.3)
    for n_per_class, spread in (*good, (100, 0), (300, 0), (1000, 0), (3000, 0)):
        X, y = make_data(n, 512, n // n_per_class, spread)
        kind = f"{n} x 512, {n_per_class} per {'class' if spread else 'random class'}"
        recall, is_held_to = partial(recall_at_k, X, y, [1, 2, 4, 8]), n_per_class <= 300
        for name, ours, bar in (
            ("retrieval_report", partial(retrieval_report, X, y), 5),
            ("its retrieval measures", partial(neighbors, FunctionTransformer(), X, y), 3),
        ):
            (ratio,) = median_ratios(ours, [recall], min(n_rounds, 3))
            report(f"{name}, {kind}, time / Recall@K", ratio, bar if is_held_to else None)

    for n_per_class, spread in ((15, 0.5), (100, 0.45), (300, 0.4)):
        k = n // n_per_class
        X, y = make_data(n, 512, k, spread)
        (ratio,) = median_ratios(partial(nmi_score, X, y), [partial(KMeans(k, n_init=1, random_state=0).fit, X)], 1)
        report(f"NMI, {n} x 512 into {k} clusters, time / k-means of scikit-learn", ratio, 0.5)

    if AccuracyCalculator is None or faiss is None:
        print("pytorch-metric-learning or faiss is not installed: their rows are left out.")
    else:
        # By default, the peer sorts all rows for each query, which needs too much memory beyond this size.
        for size, k, bar in ((8_000, None, 1 / 3), (n, "max_bin_count", 1 / 3)):
            X, y = make_data(size, 512, size // 15, 0.5)
            peer = AccuracyCalculator(include=("mean_average_precision_at_r",), k=k)
            tensors = torch.from_numpy(X), torch.from_numpy(y)
            (ratio,) = median_ratios(
                lambda X=X, y=y: map_at_r(X, y),
                [lambda peer=peer, tensors=tensors: peer.get_accuracy(*tensors)],
                min(n_rounds, 3),
            )
            report(f"MAP@R, {size} x 512, time / pytorch-metric-learning, k={k}", ratio, bar)
            difference = abs(map_at_r(X, y) - peer.get_accuracy(*tensors)["mean_average_precision_at_r"])
            print(f"    the values differ by {difference:.1e}")

    for n_components in (64, 512):
        X, y = make_data(20_000, n_components, 1_000)
        (ratio,) = median_ratios(
            lambda X=X, y=y: calibrate_threshold(FunctionTransformer(), X, y), [lambda X=X: full_product(X)], n_rounds
        )
        report(f"calibrate_threshold, 20000 x {n_components}, time / the bare product", ratio, 3)
    report("calibrate_threshold, 20000 x 64, peak memory", in_fresh_process(threshold_memory, 20_000), 2, " GiB")

    Z, z = make_data(n_large, 32, n_large // 5)
    (ratio,) = median_ratios(lambda: recall_at_k(Z, z, [1, 10, 100, 1000]), [lambda: full_product(Z)], 3)
    report(f"Recall@{{1,10,100,1000}}, {n_large} x 32, time / the bare product", ratio, None)
    report(
        f"Recall@{{1,10,100,1000}}, {n_large} x 32, peak memory", in_fresh_process(recall_memory, n_large), 1, " GiB"
    )
    report(f"MAP@R, {n_large} x 32, peak memory", in_fresh_process(map_memory, n_large), None, " GiB")


if __name__ == "__main__":
    try:
        import faiss
    except ImportError:
        faiss = None
    try:
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    except ImportError:
        AccuracyCalculator = None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small data, which takes less than a minute")
    main(**vars(parser.parse_args()))
