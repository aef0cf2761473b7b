"""Similarities of a batch, and the distances in them.

Axes: B samples of a batch, M samples they are compared with, D components.
"""

import torch

from .terms import LossFunction, own_backward


def dot_products(embeddings, columns=None):
    """Return the dot products (B, M) of the rows of embeddings (B, D) and columns (M, D), by default the embeddings."""
    return _Gram.apply(embeddings) if columns is None else embeddings @ columns.T


def distance_similarities(embeddings, columns=None):
    """Return 1 - d^2 / 2 for the Euclidean distances d, (B, M): for unit rows the dot products, and no diagonal needed.

    So a loss of distances is a function of similarities, for rows of any length: d^2 = 2 - 2 s.
    """
    # Distances do not depend on the origin; an origin among the samples loses fewer digits to cancellation.
    origin = embeddings[0].detach()
    rows = embeddings - origin  # (B, D)
    if columns is None:
        S, norms = dot_products(rows), rows.square().sum(dim=1)
        half_norms = (norms[:, None] + norms) / 2
    else:
        columns = columns - origin
        S = dot_products(rows, columns)
        half_norms = (rows.square().sum(dim=1)[:, None] + columns.square().sum(dim=1)) / 2
    return (1 + (S - half_norms)).clamp(max=1)


def squared_distances(S):
    """Return d^2 = 2 - 2 s, at least 0."""
    return (2 - 2 * S).clamp(min=0)


def distances(S):
    """Return d = sqrt(2 - 2 s); at d = 0, where the root has no slope, the gradient is 0."""
    squares = squared_distances(S)
    return torch.where(squares > 0, squares, 1).sqrt().where(squares > 0, 0)


class _Gram(LossFunction):
    """X X^T with one product in the backward pass; autograd, not knowing that the factors are equal, takes two."""

    @staticmethod
    def forward(X):
        return X @ X.T

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @own_backward
    def backward(ctx, G):
        (X,) = ctx.saved_tensors
        # A transposed copy first: the plain sum G + G.T reads along the columns and takes three times as long.
        return G.T.contiguous().add_(G) @ X
