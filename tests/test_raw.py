"""RAW and valid triplet based hard mining against their formulas in plain loops, ties and limit cases."""

import pytest
import torch
from torch.nn.functional import normalize

from skdml import RAWEmbedder
from skdml._loss.mining import vthm
from skdml._loss.pairs import pair_masks
from skdml.losses import RAWLoss

HARD = {"alpha": 3.0, "beta": 20.0, "threshold": 0.2, "mining_margin": 0.3}


@pytest.fixture
def batch():
    """Unit rows (B, D) and labels (B,), one class with a single sample."""
    x = normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return x.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1, 7])


def pairs_in_loops(S, y, margin):
    """The positives and negatives of each anchor that valid triplet based hard mining selects; all without margin."""
    selected = []
    for i in range(len(y)):
        P = [j for j in range(len(y)) if j != i and y[j] == y[i]]
        N = [j for j in range(len(y)) if y[j] != y[i]]
        if margin is not None:
            kept_P = [j for j in P if any(S[i, j] < S[i, k] + margin for k in N)]
            kept_N = [j for j in N if any(S[i, j] > S[i, k] - margin for k in P)]
            P, N = kept_P, kept_N
        selected.append((P, N))
    return selected


def in_loops(S, pairs, *, alpha, beta, threshold):
    """Eq. (17), one exponential at a time."""
    loss = 0
    for i, (P, N) in enumerate(pairs):
        loss = loss + torch.log1p(sum([torch.exp(-alpha * (S[i, k] - threshold)) for k in P], S.new_zeros(()))) / alpha
        loss = loss + torch.log1p(sum([torch.exp(beta * (S[i, k] - threshold)) for k in N], S.new_zeros(()))) / beta
    return loss / len(S)


@pytest.mark.parametrize("settings", [{}, HARD, {"mining": None}, {**HARD, "mining": None}])
def test_equals_the_formula(batch, settings):
    x, y = batch
    loss = RAWLoss(**settings)
    S = x @ x.T
    pairs = pairs_in_loops(S, y, loss.mining_margin if loss.mining else None)
    expected = in_loops(S, pairs, alpha=loss.alpha, beta=loss.beta, threshold=loss.threshold)
    value = loss(x, y)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(value, x), torch.autograd.grad(expected, x))


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.7])
def test_mining_selects_what_a_triplet_violates(batch, margin):
    x, y = batch
    S = (x @ x.T).detach()
    positive, negative = vthm(S, *pair_masks(y), margin)
    for i, (P, N) in enumerate(pairs_in_loops(S, y, margin)):
        assert positive[i].nonzero().flatten().tolist() == P
        assert negative[i].nonzero().flatten().tolist() == N


def test_a_tie_is_not_selected():
    """Similarities 0, 0.5 and 1 of a margin of 0.5 are exact, so every comparison is one of equal numbers."""
    S = torch.tensor([[1.0, 1.0, 0.5], [1.0, 1.0, 0.0], [0.5, 0.0, 1.0]])
    masks = pair_masks(torch.tensor([0, 0, 1]))
    assert [mask.sum() for mask in vthm(S, *masks, 0.5)] == [0, 0]
    positive, negative = vthm(S, *masks, 0.5 + 1e-6)
    assert positive.nonzero().tolist() == [[0, 1]]
    assert negative.nonzero().tolist() == [[0, 2]]


def test_weights_are_those_of_the_paper(batch):
    """Eqs. (15) and (16) are the gradient in S times B, less for positive pairs."""
    x, y = batch
    alpha, beta, threshold = 2.0, 50.0, 0.5
    loss = RAWLoss()
    S = (x @ x.T).detach().requires_grad_()
    positive, negative = loss.mine(S.detach(), *pair_masks(y), x.shape[1])
    loss.pair_loss(S, positive, negative).backward()
    expected = torch.zeros_like(S)
    for i, j in positive.nonzero().tolist():
        relative = sum(torch.exp(alpha * (S[i, j] - S[i, k])) for k in positive[i].nonzero().flatten())
        expected[i, j] = -1 / (relative + torch.exp(alpha * (S[i, j] - threshold)))
    for i, j in negative.nonzero().tolist():
        relative = sum(torch.exp(-beta * (S[i, j] - S[i, k])) for k in negative[i].nonzero().flatten())
        expected[i, j] = 1 / (relative + torch.exp(-beta * (S[i, j] - threshold)))
    assert (expected != 0).sum() > 20
    torch.testing.assert_close(len(y) * S.grad, expected)


def test_sharp_negatives_leave_the_hardest(batch):
    """Towards beta = infinity an anchor's second term is [max over negatives of s - lambda]+, and so for the first."""
    x, y = batch
    S = x @ x.T
    positive, negative = pair_masks(y)
    pull = (0.5 - torch.where(positive, S, torch.inf).amin(dim=1)).clamp(min=0)
    push = (torch.where(negative, S, -torch.inf).amax(dim=1) - 0.5).clamp(min=0)
    torch.testing.assert_close(RAWLoss(alpha=1e9, beta=1e9, mining=None)(x, y), (pull + push).mean())


@pytest.mark.parametrize("y", [[0] * 6, [0, 1, 2, 3, 4, 5]], ids=["one class", "all different"])
def test_batch_without_triplets_gives_zero(y):
    x = normalize(torch.randn(6, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = RAWLoss()(x, torch.tensor(y))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_well_separated_batch_gives_zero():
    x = torch.eye(3).repeat_interleave(2, dim=0).requires_grad_()
    value = RAWLoss()(x, torch.tensor([0, 0, 1, 1, 2, 2]))
    value.backward()
    assert value == 0
    assert x.grad.equal(torch.zeros_like(x))


def test_duplicates_are_ordinary_positives():
    """Anchors 0 and 1 are equal rows of one class; their pair has s = 1 and its weight is not 0."""
    S = torch.tensor([[1.0, 1.0, 0.95], [1.0, 1.0, 0.95], [0.95, 0.95, 1.0]], requires_grad=True)
    loss = RAWLoss()
    positive, negative = loss.mine(S.detach(), *pair_masks(torch.tensor([0, 0, 1])), 2)
    assert positive.nonzero().tolist() == [[0, 1], [1, 0]]
    loss.pair_loss(S, positive, negative).backward()
    assert S.grad[0, 1] < 0


def test_exponents_of_long_rows_do_not_overflow():
    """beta (s - lambda) is about 5e5; the loss approaches s itself."""
    x = torch.tensor([[100.0, 0.0], [0.0, 100.0], [100.0, 1.0], [1.0, 100.0]], requires_grad=True)
    value = RAWLoss()(x, torch.tensor([0, 0, 1, 1]))
    value.backward()
    # Every anchor: the hardest positive has s <= 100 * 1 + 1, each negative s = 100**2, less lambda; plus the pull.
    assert value.item() == pytest.approx(1e4 - 0.5, rel=1e-2)
    assert x.grad.isfinite().all()


def test_mining_may_be_a_callable(batch):
    x, y = batch
    seen = []

    def nothing_but_negatives(S, positive, negative):
        seen.append((S.requires_grad, S.shape, positive.dtype, negative.dtype))
        return positive & False, negative

    loss = RAWLoss(mining=nothing_but_negatives)
    pairs = [([], N) for _, N in pairs_in_loops(x @ x.T, y, None)]
    expected = in_loops(x @ x.T, pairs, alpha=2.0, beta=50.0, threshold=0.5)
    torch.testing.assert_close(loss(x, y), expected)
    assert loss.mining is nothing_but_negatives
    assert seen == [(False, (9, 9), torch.bool, torch.bool)]


def test_unknown_mining_is_refused():
    with pytest.raises(ValueError, match=r"The 'mining' parameter of RAWLoss must be .*'vthm'.*Got 'hardest' instead"):
        RAWLoss(mining="hardest")


def test_gradient_in_the_similarities_is_that_of_the_value(batch):
    x, y = batch
    S = (x @ x.T).detach()
    masks = vthm(S, *pair_masks(y))
    loss = RAWLoss(beta=10.0)
    assert torch.autograd.gradcheck(lambda S: loss.pair_loss(S, *masks), S.requires_grad_())


@pytest.mark.parametrize("mining", ["vthm", None, lambda S, positive, negative: (positive, negative & (S > 0))])
def test_embedder_takes_every_kind_of_mining(blobs, mining):
    X, y = blobs
    fitted = RAWEmbedder(mining=mining, batch_size=32).fit(X, y)
    assert fitted.criterion_.mining is mining
    assert fitted.score(X, y) > 0.9
