"""A large gallery: embeddings streamed from one memory map to another, then exact search, faiss and hnswlib.

    python benchmarks/gallery.py              a million rows, about 15 minutes on two cores
    python benchmarks/gallery.py --rows 50000

Needs faiss-cpu and hnswlib. Times are those of this machine; compare the rows with each other.
"""

import argparse
import os
import re
import tempfile
import time
from pathlib import Path

import faiss
import hnswlib
import numpy as np
import torch
from sklearn.utils import gen_batches

from skdml import SoftTripleEmbedder

N_FEATURES, N_COMPONENTS, PER_CLASS, N_QUERIES, K = 128, 64, 10, 1000, 10


def samples(rng, n_classes, directions):
    """Return rows of classes that differ in 32 directions, with as much noise in all columns, and their classes."""
    y = np.repeat(np.arange(n_classes), PER_CLASS)
    centers = rng.normal(size=(n_classes, len(directions))).astype(np.float32)
    X = centers[y] @ directions
    return X + rng.normal(size=X.shape).astype(np.float32), y


def megabytes():
    """Return the memory of this process (Linux), without the pages of memory maps, which the system may drop."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def timed(function):
    start = time.perf_counter()
    value = function()
    return value, time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(32, N_FEATURES)).astype(np.float32) / 32**0.5
    n_threads = torch.get_num_threads()
    faiss.omp_set_num_threads(n_threads)
    embedder = SoftTripleEmbedder(n_centers=1, n_components=N_COMPONENTS, max_epochs=10, random_state=0)
    embedder.fit(*samples(rng, 500, directions))

    with tempfile.TemporaryDirectory() as folder:
        n = args.rows
        X = np.lib.format.open_memmap(Path(folder, "X.npy"), "w+", np.float32, (n, N_FEATURES))
        for rows in gen_batches(n, 100_000):
            X[rows] = samples(rng, -(-len(X[rows]) // PER_CLASS), directions)[0][: len(X[rows])]
        X = np.load(Path(folder, "X.npy"), mmap_mode="r")

        used = [megabytes()]

        def embed():
            Z = np.lib.format.open_memmap(Path(folder, "Z.npy"), "w+", np.float32, (n, N_COMPONENTS))
            for rows in gen_batches(n, 100_000):
                Z[rows] = embedder.transform(X[rows])
                used.append(megabytes())
            return Z

        Z, duration = timed(embed)
        print(f"{n:,} x {N_FEATURES} to {n:,} x {N_COMPONENTS}, {n_threads} threads: {duration:.0f} s")
        print(f"memory grew by at most {max(used) - used[0]:.0f} MB; the embeddings are {Z.nbytes / 1e6:.0f} MB\n")

        queries = np.sort(rng.choice(n, N_QUERIES, replace=False))
        Q = embedder.transform(X[queries] + 0.1 * rng.normal(size=(N_QUERIES, N_FEATURES)).astype(np.float32))
        Z = np.asarray(Z)

        exact = faiss.IndexFlatIP(N_COMPONENTS)
        _, add = timed(lambda: exact.add(Z))
        (_, nearest), search = timed(lambda: exact.search(Q, K))
        print(f"{'index':28}{'build':>8}{'a query':>12}{f'recall of {K}':>14}{'MB':>8}")

        def show(name, build, search, found, size):
            recall = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(found, nearest, strict=True)])
            print(f"{name:28}{build:6.1f} s{1000 * search / N_QUERIES:9.3f} ms{recall:14.3f}{size / 1e6:8.0f}")

        show("faiss, exact", add, search, nearest, Z.nbytes)

        n_lists = int(4 * n**0.5)
        ivf = faiss.IndexIVFFlat(faiss.IndexFlatIP(N_COMPONENTS), N_COMPONENTS, n_lists, faiss.METRIC_INNER_PRODUCT)

        def build_lists():
            ivf.train(Z[rng.choice(n, min(n, 40 * n_lists), replace=False)])
            ivf.add(Z)

        _, build = timed(build_lists)
        size = len(faiss.serialize_index(ivf))
        for ivf.nprobe in (4, 16, 64):
            (_, found), search = timed(lambda: ivf.search(Q, K))
            show(f"faiss, {ivf.nprobe} of {n_lists} lists", build, search, found, size)

        graph = hnswlib.Index(space="ip", dim=N_COMPONENTS)
        graph.init_index(n, M=16, ef_construction=100, random_seed=0)
        graph.set_num_threads(n_threads)
        _, build = timed(lambda: graph.add_items(Z))
        graph.save_index(str(Path(folder, "graph")))
        size = os.path.getsize(Path(folder, "graph"))
        for ef in (32, 128):
            graph.set_ef(ef)
            (found, _), search = timed(lambda: graph.knn_query(Q, K))
            show(f"hnswlib, ef {ef}", build, search, found, size)


if __name__ == "__main__":
    main()
