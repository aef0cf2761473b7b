"""The Recall@k surrogate against its formula in plain loops, limit cases, and gradients in chunks."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from skdml import RecallSurrogateEmbedder, recall_at_k
from skdml._engine.net import EmbeddingNet, Recipe
from skdml._loss.pairs import pair_masks
from skdml._network.networks import EmbeddingNetwork
from skdml.losses import RecallSurrogateLoss


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def in_loops(S, positive, negative, *, ks=(1, 2, 4, 8, 16), tau1=0.01, tau2=1.0):
    """The formula, one sigmoid at a time."""
    recalls = []
    for q in range(len(S)):
        P = [j for j in range(S.shape[1]) if positive[q, j]]
        others = [j for j in range(S.shape[1]) if positive[q, j] or negative[q, j] or j == q]
        ranks = [1 + sum(torch.sigmoid((S[q, j] - S[q, p]) / tau1) for j in others if j != p) for p in P]
        for k in ks if P else ():
            found = sum(torch.sigmoid((k - rank) / tau2) for rank in ranks)
            recalls.append(min(found, torch.full_like(found, k)) / min(k, len(P)))
    return 1 - sum(recalls) / len(recalls)


@pytest.mark.parametrize(
    "settings", [{}, {"ks": [1, 3], "tau1": 0.3, "tau2": 0.2}, {"ks": (2,), "tau1": 5.0, "tau2": 4.0}]
)
def test_equals_the_formula(batch, settings):
    x, y = batch
    value = RecallSurrogateLoss(**settings)(x, y)
    expected = in_loops(x @ x.T, *pair_masks(y), **settings)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x), rtol=1e-9, atol=1e-12)


def test_only_selected_pairs_and_memory_columns_count(batch):
    x, y = batch
    S = x @ torch.cat([x, x.flip(1)]).T
    masks = pair_masks(y, torch.cat([y, y]))
    torch.testing.assert_close(RecallSurrogateLoss().pair_loss(S, *masks), in_loops(S, *masks))
    mined = RecallSurrogateLoss(mining="semihard").mine(S.detach(), *masks, 4)
    torch.testing.assert_close(RecallSurrogateLoss().pair_loss(S, *mined), in_loops(S, *mined))


def test_what_counts_is_clipped_at_k():
    """28 positives, as similar as the query itself, have rank 15 each: with k = 16 they count 28 sigma(1) = 20.5."""
    x = torch.ones(29, 2, dtype=torch.float64, requires_grad=True)
    y = torch.zeros(29, dtype=torch.int64)
    value = RecallSurrogateLoss(ks=(16,))(x, y)
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))
    rank = 15
    found = 28 / (1 + math.exp(rank - 8))
    assert RecallSurrogateLoss(ks=(8,))(x, y).item() == pytest.approx(1 - found / 8)


def test_narrow_sigmoids_give_the_recall_itself():
    """With one positive a query, steps of rank and of k give 1 - Recall, a rank lower for the query itself."""
    x = normalize(torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    y = torch.arange(40) // 2
    for k in (1, 2, 4):
        # sigma(0) = 1/2 at rank k: the mean of the steps at k - 2 and at k - 1, where Recall@0 is 0.
        expected = 1 - np.sum([recall_at_k(x, y, k=j) for j in (k - 2, k - 1) if j > 0]) / 2
        assert RecallSurrogateLoss(ks=(k,), tau1=1e-9, tau2=1e-3)(x, y).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("tau2", [0.1, 1.0])
def test_positives_left_out_add_nothing(monkeypatch, tau2):
    """Of 299 positives at most 2 (1 + 37 tau2) are looked at, though ties bring many to a low rank."""
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = normalize(x.round(decimals=1) + 1e-3)
    y = torch.arange(300) // 300
    loss = RecallSurrogateLoss(ks=(1,), tau2=tau2)
    S = x @ x.T
    n = loss._n_targets(pair_masks(y)[0].sum(dim=1), S)
    assert n == 2 * math.ceil(1 + 37 * tau2)
    results = []
    for n_targets in (n, 299):
        monkeypatch.setattr(RecallSurrogateLoss, "_n_targets", lambda *_, n_targets=n_targets: n_targets)
        x.requires_grad_().grad = None
        value = loss(x, y)
        value.backward()
        results.append((value.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-14, atol=1e-14)


def test_queries_without_positives_are_left_out(batch):
    x, _ = batch
    value = RecallSurrogateLoss()(x[:3], torch.tensor([0, 0, 1]))
    S = (x @ x.T).detach()
    sigma = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731
    ranks = [1 + sigma((S[q, 2] - S[0, 1]) / 0.01) + sigma((1 - S[0, 1]) / 0.01) for q in (0, 1)]
    expected = 1 - np.mean([sigma(k - rank) for rank in ranks for k in (1, 2, 4, 8, 16)])
    assert value.item() == pytest.approx(expected)
    assert RecallSurrogateLoss()(x[:3], torch.arange(3)) == 0


def test_no_matrix_of_triples_is_kept():
    """What autograd keeps grows as B^2, not with the number of positives."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = RecallSurrogateLoss()(x, torch.arange(60) % 2)
    value.backward()
    assert max(sizes) <= 60 * 60


@pytest.mark.parametrize("ks", [(), (0,), (1, 2.5), (True,)])
def test_ks_must_be_whole_numbers(blobs, ks):
    with pytest.raises(ValueError, match=r"The 'ks' parameter of RecallSurrogateLoss must be a tuple of .* integers"):
        RecallSurrogateLoss(ks=ks)
    with pytest.raises(ValueError, match=r"The 'ks' parameter of RecallSurrogateEmbedder must be a tuple of"):
        RecallSurrogateEmbedder(ks=ks).fit(*blobs)


def make_net(network, chunk_size):
    """The engine's net around a network, with an optimizer that changes nothing."""
    network = EmbeddingNetwork(network, nn.Identity(), False, "float32")
    recipe = Recipe(
        batches=None,
        max_epochs=1,
        learning_rate=0.0,
        head_learning_rate=0.0,
        loss_learning_rate=0.0,
        weight_decay=0.0,
        optimizer=torch.optim.SGD,
        chunk_size=chunk_size,
    )
    net = EmbeddingNet(
        network, RecallSurrogateLoss(tau1=0.1), recipe, callbacks=[], generator=None, augment_generator=None
    )
    return net.initialize()


def step_gradients(network, x, y, chunk_size):
    """Return the loss of one training step, and the gradients that it leaves."""
    net = make_net(copy.deepcopy(network), chunk_size)
    loss = net.train_step((x, y))["loss"]
    return loss, [p.grad for p in net.module_.parameters()]


class Unit(nn.Module):
    def forward(self, x):
        return normalize(x)


@pytest.mark.parametrize("chunk_size", [1, 7, 10])
def test_gradients_in_chunks_are_those_of_one_pass(chunk_size):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4), Unit()).double()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 4
    loss, gradients = step_gradients(network, x, y, None)
    assert all(g.abs().max() > 1e-3 for g in gradients)
    torch.testing.assert_close(step_gradients(network, x, y, chunk_size), (loss, gradients), rtol=1e-9, atol=1e-12)


def test_dropout_is_the_same_in_both_passes():
    """With both passes of a chunk under one mask, the step is that of one pass under the chunks' masks in turn."""

    class Remember(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            self.seen.append(x.detach() != 0)
            return x

    torch.manual_seed(0)
    network = nn.Sequential(nn.Dropout(0.5), Remember(), nn.Linear(5, 4), Unit()).double().train()
    x, y = torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 4
    net = make_net(network, chunk_size=8)
    torch.manual_seed(1)
    seen = net.module_.backbone[1].seen
    _, loss = net.backward_in_chunks(x, [y])
    following = torch.rand(3)
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert first.equal(second)
    assert not seen[0].equal(seen[1])

    weight, bias = (p.detach().clone().requires_grad_() for p in net.module_.backbone[2].parameters())
    expected = RecallSurrogateLoss(tau1=0.1)(normalize((x * torch.cat(seen[:3]) * 2) @ weight.T + bias), y)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close([p.grad for p in net.module_.backbone[2].parameters()], [weight.grad, bias.grad])
    # The second pass leaves the generator where the first did, and the next step has masks of its own.
    torch.manual_seed(1)
    net.module_(x[:8]), net.module_(x[8:16]), net.module_(x[16:])
    assert torch.rand(3).equal(following)


def test_embedder_trains_in_chunks(blobs, monkeypatch):
    X, y = blobs
    sizes = []
    forward = EmbeddingNet.backward_in_chunks

    def spy(net, inputs, targets):
        sizes.append((len(inputs), net.recipe.chunk_size))
        return forward(net, inputs, targets)

    monkeypatch.setattr(EmbeddingNet, "backward_in_chunks", spy)
    fitted = RecallSurrogateEmbedder(batch_size=40, chunk_size=16, max_epochs=10, random_state=0).fit(X, y)
    assert sizes
    assert set(sizes) == {(40, 16)}
    assert fitted.score(X, y) > 0.9
