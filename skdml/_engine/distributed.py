"""Several processes that train one network, where the program has made a process group of torch.distributed.

Each process holds the data, the network and the loss. It passes its rows of a batch through the network, and gets the
embeddings of the others without their graph. With them it computes the loss of the whole batch and the gradient in all
embeddings, and takes the part of its own rows back through the network: gradient caching with processes in place of
chunks. A loss therefore need not be a mean over rows, and what it learns or remembers is the same in all processes
without a message. The gradients of the network are added up, in one message; DistributedDataParallel would send them
during the backward pass, but takes no parameters that only some passes use, none that are frozen for some epochs, and
has to be told of each of several backward passes of a step.
"""

import functools
import zlib
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from .._data.arrays import Files, SparseRows
from .._data.files import chunked
from .._network.copies import sharing_tensors
from .fingerprint import WITHOUT_INFLUENCE, text_of

OWN_PARAMETERS = {*WITHOUT_INFLUENCE, "callbacks"}  # which may differ between the processes
COMPARED_BYTES = 2**28  # of X: a sample of the rows where it is larger


def n_processes():
    """Return the number of processes that train together, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank():
    """Return the number of this process in the group, from 0 on."""
    return dist.get_rank() if n_processes() > 1 else 0


# ---- objects, and errors before the training


def of_all(value):
    """Return the value of each process, a list; all must call."""
    values = [value] * n_processes()
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def of_first(value):
    """Return the value of the first process; all must call."""
    if n_processes() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


@contextmanager
def errors_of_all():
    """Raise in every process if the block raises in one of them, so that none waits for it.

    Raises
    ------
    ValueError
        If the block has raised in another process.
    """
    if n_processes() == 1:
        yield
        return
    try:
        yield
    except Exception as error:
        of_all(f"{type(error).__name__}: {error}")
        raise
    for number, message in enumerate(of_all(None)):
        if message is not None:
            raise ValueError(
                f"In process {number} of the {n_processes()} that train together, which must call fit with the same "
                f"X and y, fit has failed: {message}"
            )


def check_alike(estimator, task, **others):
    """Raise a ValueError in all processes if they do not fit the same: class, parameters, X, y and other values."""
    if n_processes() == 1:
        return
    parameters = estimator.get_params(deep=False)
    facts = {
        "the class of the embedder": type(estimator).__name__,
        **{name: _description(value) for name, value in parameters.items() if name not in OWN_PARAMETERS},
        **others,
        "the number of samples": len(task.data),
        "the shape of a sample": tuple(task.data.sample_shape),
        "X": _crc_of_rows(task.data),
        "y": _crc(task.labels, repr(task.classes.tolist()).encode()),
        "sample_weight": None if task.weights is None else _crc(task.weights),
    }
    first, *others = of_all(facts)
    # Embedders of two classes need not have parameters of the same names.
    differing = [name for name in first if any(other.get(name) != first[name] for other in others)]
    if differing:
        raise ValueError(
            f"The {n_processes()} processes of torch.distributed train one embedder, and each must call fit with the "
            f"same X and y and an embedder with the same parameters, but they differ in {', '.join(differing)}. Pass "
            "all of X to each process: fit deals the rows of each batch to them. For a fit of its own in each "
            "process, call torch.distributed.destroy_process_group() before."
        )


def _description(value):
    """Return something about the value of a parameter that is equal in two processes where the values are.

    Weights of modules and the states of generators need not be: those of the first process count.
    """
    if isinstance(value, nn.Module):
        return [(name, tuple(tensor.shape)) for name, tensor in value.state_dict().items()]
    return type(value).__qualname__ if isinstance(value, np.random.RandomState) else text_of(value)


def _crc_of_rows(data):
    if isinstance(data, Files):
        return _crc(*(path.encode(errors="surrogatepass") + b"\0" for path in data.files.paths))
    X = data.X
    n_bytes = X.data.nbytes + X.indices.nbytes if isinstance(data, SparseRows) else X.nbytes
    rows = X[:: -(-n_bytes // COMPARED_BYTES) or 1]
    if isinstance(data, SparseRows):
        return _crc(rows.data, rows.indices, rows.indptr)
    return _crc(rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows)


def _crc(*parts):
    # Python's hash of a str differs between processes.
    return functools.reduce(
        lambda crc, part: zlib.crc32(part if isinstance(part, bytes) else np.ascontiguousarray(part), crc), parts, 0
    )


# ---- the rows of a batch


def own_rows(index):
    """Return the part of the index tensor of a batch that this process embeds: every N-th row, from its rank on.

    They are at least two where the batch has two, as BatchNorm does not train on a single row. The rows of other
    processes that are then added stand at the end, and `own_gradient` is 0 for them.
    """
    n_rows = len(index)
    own = index[rank() :: n_processes()]
    filling = [(rank() + place) % n_rows for place in range(len(own), min(2, n_rows))]
    return torch.cat([own, index[filling]]) if filling else own


def gathered(own, n_rows):
    """Return the embeddings (n_rows, D) of a batch from those that each process has of its `own_rows`."""
    if n_processes() == 1:
        return own
    size = -(-n_rows // n_processes())
    own = own[: len(range(rank(), n_rows, n_processes()))]
    own = F.pad(own, (0, 0, 0, size - len(own)))
    parts = [torch.empty_like(own) for _ in range(n_processes())]
    dist.all_gather(parts, own)
    return torch.stack(parts, dim=1).flatten(0, 1)[:n_rows]


def own_gradient(grad, n_own):
    """Return the rows of a gradient (n_rows, D) of all embeddings that belong to the ``n_own`` `own_rows`."""
    own = grad[rank() :: n_processes()]
    return F.pad(own, (0, 0, 0, n_own - len(own)))


def own_share(n_rows):
    """Return the range of the rows of a data set that this process embeds; all are as long, and the last may overlap.

    As they are equally long, whatever draws random numbers in a pass draws as many in each process.
    """
    size = -(-n_rows // n_processes())
    start = min(rank() * size, n_rows - size)
    return range(start, start + size)


def of_shares(own, n_rows):
    """Return the embeddings (n_rows, D) of a data set from those that each process has of its `own_share`."""
    size = len(own)
    joined = own.new_empty(n_rows, own.shape[1])
    parts = [torch.empty_like(own) for _ in range(n_processes())]
    dist.all_gather(parts, own)
    for number, part in enumerate(parts):
        start = min(number * size, n_rows - size)
        joined[start : start + size] = part
    return joined


def batches_of_first(batches, index_device, device):
    """Return the first process's batches: another processor may have rounded, and clustered, in another way."""
    if n_processes() == 1:
        return batches
    batches = of_first([[part.cpu().numpy() for part in batch] for batch in batches])
    batches = [[torch.from_numpy(part) for part in batch] for batch in batches]
    return [(index.to(index_device), *(part.to(device) for part in others)) for index, *others in batches]


# ---- the tensors of the network and the loss


@torch.no_grad()
def add_up_gradients(parameters):
    """Give the parameters the sum of their gradients over the processes, and none where no process has one."""
    if n_processes() == 1:
        return
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if not parameters:
        return
    has_gradient = [parameter.grad is not None for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
    counts = torch.tensor(has_gradient, dtype=torch.float32, device=parameters[0].device)
    _as_one([*(parameter.grad for parameter in parameters), counts], dist.all_reduce)
    if not all(has_gradient):  # a process with all gradients need not wait for the counts: none is 0
        for parameter, count in zip(parameters, counts.tolist(), strict=True):
            if count == 0:
                parameter.grad = None


@torch.no_grad()
def take_from_first(*modules, buffers_of=()):
    """Give the modules the parameters and buffers that they have in the first process, and others only the buffers."""
    if n_processes() > 1:
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        tensors += [tensor for module in buffers_of for tensor in module.buffers()]
        _as_one(tensors, functools.partial(dist.broadcast, src=0))


def _as_one(tensors, collective: Callable):
    """Apply a collective that changes a tensor in place to all tensors of a dtype as one."""
    by_dtype: dict = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        message = torch.cat([tensor.flatten() for tensor in group])
        collective(message)
        for tensor, part in zip(group, message.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def with_common_batchnorm(network):
    """Return the network, on CUDA with BatchNorm over the rows of all processes: a copy with the same tensors.

    torch has such a layer for CUDA only. On other devices each process normalizes by its own rows.
    """
    if n_processes() == 1 or not any(parameter.is_cuda for parameter in network.parameters()):
        return network
    return nn.SyncBatchNorm.convert_sync_batchnorm(sharing_tensors(network))


def fill_cache(data):
    """Decode the files that the cache lacks, each process its share, so that none of them is decoded twice."""
    if n_processes() == 1 or not isinstance(data, Files) or data.files.cache is None:
        return
    files = data.files
    with errors_of_all():
        own = [row for row in range(rank(), len(files), n_processes()) if row not in files.cache]
        for _ in files.images(chunked(own)):  # writes them to the cache
            pass
    files.cache.look_up()
