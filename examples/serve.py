"""
Serve a search over HTTP
========================

From a fitted embedder to a service that answers "which images look like this one?": an ONNX file in onnxruntime, behind
a small HTTP server, with its latency. Then the same gallery in three indexes: faiss, hnswlib and PostgreSQL with
pgvector.

Serving needs neither torch nor skdml: an ONNX file, onnxruntime and NumPy are enough. Run this script with
``pip install 'skdml[onnx]'``. The last section uses what is installed of ``faiss-cpu``, ``hnswlib`` and
``psycopg[binary]`` with ``pgserver``, a PostgreSQL server with pgvector, and says what it skips.
"""

# %%
# The model as a file
# -------------------
# The embedder learns half of the bundled characters. The gallery holds images of the other half, and the queries are
# images of these that are not in the gallery.
import io
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime

from skdml import RAWEmbedder
from skdml.datasets import load_kanji

kanji = load_kanji()
embedder = RAWEmbedder(max_epochs=15, random_state=0).fit(kanji.images[kanji.train], kanji.target[kanji.train])
cleanup = ExitStack()
folder = cleanup.enter_context(tempfile.TemporaryDirectory())
model = Path(folder, "embedder.onnx")
embedder.to_onnx(model)

unseen = np.flatnonzero(~kanji.train)
queries, gallery = unseen[::4], np.setdiff1d(unseen, unseen[::4])
Z = embedder.transform(kanji.images[gallery])

# %%
# The service
# -----------
# ``InferenceSession.run`` may be called by several threads at once. With one thread within a request, two requests use
# two cores; where requests come one by one, give it more. A request is what ``numpy.save`` writes, uint8 images of
# shape (n, 32, 32). It comes from outside, so everything about it is checked: its length, type and shape, and that it
# is not a pickle.
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options)
LARGEST = 1024 * 32 * 32 + 1024  # bytes of a request


class Search(BaseHTTPRequestHandler):
    """Answer a POST of images with the numbers and similarities of the ten nearest images of the gallery."""

    protocol_version = "HTTP/1.1"  # connections are kept
    disable_nagle_algorithm = True  # or the system waits for more before it sends an answer

    def do_POST(self):
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= LARGEST:
            self.close_connection = True  # what it sends is not read
            return self.answer(413, {"error": f"{length} bytes; need 1 to {LARGEST}"})
        try:
            images = np.load(io.BytesIO(self.rfile.read(length)), allow_pickle=False)
        except ValueError as error:
            return self.answer(400, {"error": f"not an array as numpy.save writes it: {error}"})
        if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (32, 32) or not len(images):
            return self.answer(400, {"error": f"{images.dtype} of shape {images.shape}; need uint8 of (n, 32, 32)"})
        x = (images[:, None].astype(np.float32) - 127) / 128  # as skdml does it
        (embeddings,) = session.run(["embeddings"], {"X": x})
        similarities = embeddings @ Z.T
        nearest = np.argsort(-similarities, axis=1)[:, :10]
        found = np.take_along_axis(similarities, nearest, axis=1)
        self.answer(200, {"images": gallery[nearest].tolist(), "similarities": found.round(4).tolist()})

    def answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass  # log to where your logs are


server = ThreadingHTTPServer(("127.0.0.1", 0), Search)  # the system chooses a free port
threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(connection, images):
    """Return the status and the answer of the service."""
    body = io.BytesIO()
    np.save(body, images)
    connection.request("POST", "/search", body.getvalue())
    response = connection.getresponse()
    return response.status, json.loads(response.read())


connection = HTTPConnection(*server.server_address)
status, found = ask(connection, kanji.images[queries])
is_right = kanji.target[found["images"]][:, 0] == kanji.target[queries]
print(
    f"{len(queries)} queries, {len(gallery)} images: the nearest one is of the same character for {is_right.mean():.3f}"
)
expected = np.argsort(-embedder.transform(kanji.images[queries]) @ Z.T, axis=1)[:, 0]
print(f"as with transform for {np.mean(gallery[expected] == np.array(found['images'])[:, 0]):.3f} of the queries")
for wrong in (kanji.images[queries].astype(float), kanji.images[queries][:, :16]):
    print(*ask(connection, wrong))

# %%
# Its latency
# -----------
# Clients wait for each answer before they send the next request. More clients than cores wait for each other; a larger
# batch costs less per image.


def seconds(n_requests, batch, client):
    """Return how long each request of a client took."""
    connection = HTTPConnection(*server.server_address)
    rng = np.random.default_rng(client)
    durations = []
    for _ in range(n_requests):
        images = kanji.images[rng.choice(queries, batch)]
        start = time.perf_counter()
        status, _ = ask(connection, images)
        durations.append(time.perf_counter() - start)
        assert status == 200
    connection.close()
    return durations


print(f"{'clients':>8}{'batch':>7}{'p50':>10}{'p99':>10}{'images/s':>10}")
for n_clients, batch in ((1, 1), (1, 32), (2, 1), (2, 32), (8, 1)):
    with ThreadPoolExecutor(n_clients) as pool:
        start = time.perf_counter()
        durations = np.concatenate(list(pool.map(partial(seconds, 100, batch), range(n_clients))))
        duration = time.perf_counter() - start
    p50, p99 = np.percentile(1000 * durations, [50, 99])
    print(f"{n_clients:8}{batch:7}{p50:7.1f} ms{p99:7.1f} ms{len(durations) * batch / duration:10.0f}")
connection.close()
server.shutdown()
server.server_close()

# %%
# The gallery in an index
# -----------------------
# A product with all of a gallery is exact, and fast up to some hundred thousand rows. Beyond, an approximate index
# pays: see :ref:`large_gallery` for a million. Embeddings are unit vectors, so that the inner product is the cosine.
Q = embedder.transform(kanji.images[queries])
nearest = np.argsort(-Q @ Z.T, axis=1)[:, :10]


def with_faiss():
    """Inverted lists: the rows are assigned to the nearest of 16 centroids, and the 4 nearest lists are searched."""
    import faiss

    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(Z.shape[1]), Z.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.train(Z)
    index.add(Z)
    index.nprobe = 4
    return lambda queries: index.search(queries, 10)[1]


def with_hnswlib():
    """A graph of near neighbors, through which a search walks."""
    import hnswlib

    index = hnswlib.Index(space="ip", dim=Z.shape[1])
    index.init_index(len(Z), M=16, ef_construction=100, random_seed=0)
    index.add_items(Z, num_threads=1)
    index.set_ef(50)
    return lambda queries: index.knn_query(queries, 10, num_threads=1)[0]


def with_pgvector():
    """The same kind of graph in a table, next to whatever else is known of a product."""
    import pgserver
    import psycopg

    server = pgserver.get_server(Path(folder, "database"))
    cleanup.callback(server.cleanup)
    database = cleanup.enter_context(psycopg.connect(server.get_uri(), autocommit=True))
    database.execute("CREATE EXTENSION vector")
    database.execute(f"CREATE TABLE items (id int PRIMARY KEY, embedding vector({Z.shape[1]}))")
    with database.cursor().copy("COPY items FROM STDIN") as rows:
        for i, z in enumerate(Z.tolist()):
            rows.write_row((i, str(z)))
    database.execute("CREATE INDEX ON items USING hnsw (embedding vector_ip_ops)")
    database.execute("SET hnsw.ef_search = 50")
    query = "SELECT id FROM items ORDER BY embedding <#> %s::vector LIMIT 10"
    return lambda queries: [[row[0] for row in database.execute(query, [str(q)])] for q in queries.tolist()]


for make in (with_faiss, with_hnswlib, with_pgvector):
    name = make.__name__.removeprefix("with_")
    try:
        search = make()
    except ImportError as error:
        print(f"{name}: skipped, {error}")
        continue
    start = time.perf_counter()
    found = search(Q)
    duration = time.perf_counter() - start
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(nearest, found, strict=True)])
    print(f"{name}: {recall:.3f} of the ten nearest found, {1000 * duration / len(Q):.2f} ms per query")
cleanup.close()
