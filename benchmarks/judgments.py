"""Pairs, triplets and quadruplets instead of classes: skdml and metric-learn on the same judgments.

    python benchmarks/judgments.py --metric-learn-python PATH [--faces FOLDER] [--vectors banking77_minilm.npz]

metric-learn needs an older scikit-learn: PATH is the interpreter of an environment that has both. FOLDER holds the ORL
faces, with a subfolder per person. A file of ``--vectors`` holds X, y and ``train``, a mask of the samples of the
training classes. Without these, only the digits are measured.

A third of the samples of the training classes is set aside as new samples. All judgments are drawn at random from the
classes: 2,000 of the other samples to train on, 4,000 of the new samples, and 4,000 of the unseen classes. The table
holds the ROC AUC of pairs, half of them from one class, and the share of the triplets and quadruplets that is judged
correctly. The time is that of the processor in a fit, as a multiple of that of the first row of skdml. All have their
defaults, with the exceptions in PARAMETERS.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

OTHERS = {"pairs": ["ITML", "MMC", "SDML"], "triplets": ["SCML"], "quadruplets": ["LSML"]}
PARAMETERS = {"SDML": {"balance_param": 1e-4}}  # with the default, the graphical lasso of scikit-learn fails
KINDS = ("pairs", "triplets", "quadruplets")


def load(args):
    """Yield (name, X, y, mask of the samples of the training classes)."""
    from PIL import Image
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    yield "digits", X / 16, y, y < 5
    if args.faces:
        paths = sorted(args.faces.glob("*/*.pgm"))
        X = np.array([np.asarray(Image.open(path).resize((18, 22), Image.Resampling.BOX)) for path in paths])
        y = np.unique([path.parent.name for path in paths], return_inverse=True)[1]
        yield "faces", X.reshape(len(X), -1) / 255, y, y < 20
    for path in args.vectors:
        with np.load(path) as file:
            yield path.stem, file["X"].astype(np.float64), file["y"], file["train"]


def draw(kind, y, rows, n, rng):
    """Return n judgments as an index array (n, 2..4), and the y of pairs."""

    def same(size):
        """Return pairs (size, 2) of two samples of one class."""
        first = rng.choice(rows, 20 * size)
        second = rng.choice(rows, 20 * size)
        return np.stack([first, second], axis=1)[(y[first] == y[second]) & (first != second)][:size]

    def other(first):
        """Return for each sample one of another class."""
        second = rng.choice(rows, (50, len(first)))
        return np.take_along_axis(second, (y[second] != y[first]).argmax(axis=0)[None], axis=0)[0]

    pairs = []
    while sum(map(len, pairs)) < n:
        pairs.append(same(n))
    pairs = np.concatenate(pairs)[:n]
    match kind:
        case "pairs":
            labels = np.where(np.arange(n) % 2, 1, -1)
            pairs[labels < 0, 1] = other(pairs[labels < 0, 0])
            return pairs, labels
        case "triplets":
            return np.column_stack([pairs, other(pairs[:, 0])]), None
        case "quadruplets":
            third = rng.choice(rows, n)
            return np.column_stack([pairs, third, other(third)]), None


def measure(kind, Z, judgments, labels):
    """Return the ROC AUC of pairs, or the share that is right, by Euclidean distances in Z."""
    from sklearn.metrics import roc_auc_score

    def distance(a, b):
        return np.linalg.norm(Z[a].astype(np.float64) - Z[b], axis=1)

    if kind == "pairs":
        return roc_auc_score(labels, -distance(*judgments.T))
    a, b, *others = judgments.T
    return (distance(a, b) < distance(*([a, *others] if kind == "triplets" else others))).mean()


def fit_other(name, kind, folder):
    """Fit an estimator of metric-learn; this runs in its environment."""
    import metric_learn

    X, judgments = np.load(folder / "X.npy"), np.load(folder / f"{kind}.npy")
    learner = getattr(metric_learn, name)(random_state=0, **PARAMETERS.get(name, {}))
    start = time.process_time()
    learner.fit(X[judgments], *([np.load(folder / "labels.npy")] if kind == "pairs" else []))
    seconds = time.process_time() - start
    np.savez(folder / f"{name}.npz", Z=learner.transform(X), seconds=seconds)


def run_other(name, kind, folder, args):
    """Return the embeddings and the seconds of an estimator of metric-learn, or why there are none."""
    command = [args.metric_learn_python, __file__, "--fit", name, kind, folder]
    try:
        subprocess.run(command, check=True, timeout=args.timeout, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        return None, f"not done after {args.timeout} s"
    except subprocess.CalledProcessError as error:
        return None, error.stderr.strip().splitlines()[-1]
    with np.load(folder / f"{name}.npz") as file:
        return file["Z"], float(file["seconds"])


def run_own(embedder, X, judgments, labels, seeds):
    from sklearn.base import clone

    embedders = [clone(embedder).set_params(random_state=seed) for seed in seeds]
    start = time.process_time()
    for fitted in embedders:
        fitted.fit(X[judgments], labels)
    return [fitted.transform(X) for fitted in embedders], (time.process_time() - start) / len(seeds)


def compare(name, X, y, train, args):
    """Print the table of one data set."""
    from skdml import PairsEmbedder, QuadrupletsEmbedder, TripletsEmbedder

    own = {
        "pairs": [PairsEmbedder(), PairsEmbedder(loss="binomial_deviance")],
        "triplets": [TripletsEmbedder(), TripletsEmbedder(loss="sst")],
        "quadruplets": [QuadrupletsEmbedder()],
    }
    rng = np.random.default_rng(0)
    is_new = train & (rng.random(len(y)) < 1 / 3)
    rows = [np.flatnonzero(mask) for mask in (train & ~is_new, is_new, ~train)]
    print(f"\n{name}: {len(rows[0])} samples of {len(np.unique(y[train]))} classes, {X.shape[1]} columns")
    print("| judgments | estimator | new samples | unseen classes | time |\n|---|---|---|---|---|")
    for kind in KINDS:
        (judgments, labels), *held_out = (
            draw(kind, y, part, n, rng) for part, n in zip(rows, (2000, 4000, 4000), strict=True)
        )

        def show(title, embeddings, seconds, unit, kind=kind, held_out=held_out):
            scores = np.mean([[measure(kind, Z, *part) for part in held_out] for Z in embeddings], axis=0)
            duration = "" if seconds is None else f"{seconds / unit:.1f}"
            print("| {} | {} | {:.3f} | {:.3f} | {} |".format(kind, title, *scores, duration), flush=True)

        show("none", [X], None, None)
        unit = None
        for embedder in own[kind]:
            embeddings, seconds = run_own(embedder, X, judgments, labels, args.seeds)
            unit = unit or seconds
            show(repr(embedder), embeddings, seconds, unit)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            np.save(folder / "X.npy", X)
            np.save(folder / f"{kind}.npy", judgments)
            if labels is not None:
                np.save(folder / "labels.npy", labels)
            for other in OTHERS[kind] if args.metric_learn_python else ():
                Z, result = run_other(other, kind, folder, args)
                if Z is None:
                    print(f"| {kind} | metric-learn {other} | | | {result} |", flush=True)
                else:
                    show(f"metric-learn {other}", [Z], result, unit)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--metric-learn-python", metavar="PATH")
    parser.add_argument("--faces", type=Path, metavar="FOLDER")
    parser.add_argument("--vectors", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one fit of metric-learn")
    parser.add_argument("--fit", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        name, kind, folder = args.fit
        fit_other(name, kind, Path(folder))
        sys.exit()
    for data in load(args):
        compare(*data, args)


if __name__ == "__main__":
    main()
