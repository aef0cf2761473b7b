"""Circle loss: each pair is weighted by its distance from its optimum.

Axes: B samples of a batch, M samples the anchors are compared with.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .._constraints import NON_NEGATIVE, POSITIVE, check_constraints
from .._docstrings import with_shared_docs
from .._engine.embedder import PairEmbedder
from .._loss.pairs import PairLoss
from .._loss.terms import log_sum_exp, weighted_mean


@with_shared_docs
class CircleLoss(PairLoss):
    r"""Pull an anchor's positives and push its negatives, each with a weight that falls as it nears its optimum.

    .. math::
        \ell &= \frac1B \sum_i \log\Bigl[1 + \sum_{n \in N_i} e^{\gamma a_{in} (s_{in} - m)}
            \sum_{p \in P_i} e^{-\gamma a_{ip} (s_{ip} - 1 + m)}\Bigr] \\
        a_{in} &= [s_{in} + m]_+, \qquad a_{ip} = [1 + m - s_{ip}]_+

    This is Section 3 of [1]_. The weights a are held constant: no gradient flows through them. P_i and N_i are the
    positives and the negatives of anchor i that ``mining`` selects.

    Parameters
    ----------
    margin : float, default=0.4
        Margin m; >= 0, on the scale of a cosine. The optimum of a similarity is 1 + m for positives and -m for
        negatives; the aim is s_p > 1 - m and s_n < m.
    scale : float, default=80.0
        Gamma, the factor of the similarities; > 0, unitless. With a large value only the hardest pairs of an anchor
        count.
    {BASE_PARAMETERS}

    Raises
    ------
    ValueError
        If a parameter is outside its range, or the shapes of a batch are not (B, D) and (B,).

    Notes
    -----
    Shape: embeddings (B, D) float, taken as they are (unit rows expected); y (B,) integers; returns a scalar, the mean
    over all B anchors. An anchor without positives or without negatives contributes 0 and counts in the mean. A batch
    of one class, or without two samples of a class, gives 0 with zero gradient.

    As the weights are held constant, the gradient is not that of the value as a function of the embeddings: finite
    differences of the loss differ from it.

    The defaults are the paper's for fine-grained retrieval; for faces it uses m = 0.25 with gamma = 256, for persons
    gamma = 128.

    Code in general use sums over all unordered pairs of a batch under one logarithm; here, as in the text of the paper,
    the sum runs over the pairs of one anchor.

    References
    ----------
    .. [1] Y. Sun, C. Cheng, Y. Zhang, C. Zhang, L. Zheng, Z. Wang and Y. Wei, "Circle Loss: A Unified Perspective of
       Pair Similarity Optimization", CVPR 2020, arXiv:2002.10857. Section 3.

    Examples
    --------
    >>> import torch
    >>> from skdml.losses import CircleLoss
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], requires_grad=True)
    >>> loss = CircleLoss()(embeddings, torch.tensor([0, 0, 1, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 2)
    28.86
    """

    _parameter_constraints = {"margin": [NON_NEGATIVE], "scale": [POSITIVE], **PairLoss._parameter_constraints}

    def __init__(self, *, margin=0.4, scale=80.0, mining=None, mining_margin=0.1):
        super().__init__(mining, mining_margin)
        self.margin = margin
        self.scale = scale
        check_constraints(self, vars(self))

    def pair_loss(self, S, positive, negative, sample_weight=None):
        """Return the loss over the pairs in two masks."""
        m = self.margin
        a_p = (1 + m - S.detach()).clamp(min=0)  # (B, M)
        a_n = (S.detach() + m).clamp(min=0)  # (B, M)
        push, has_negative = log_sum_exp(self.scale * a_n * (S - m), negative)  # (B,)
        pull, has_positive = log_sum_exp(self.scale * a_p * (1 - m - S), positive)  # (B,)
        return weighted_mean(torch.where(has_positive & has_negative, F.softplus(push + pull), 0), sample_weight)


@with_shared_docs
@dataclass(kw_only=True, eq=False, repr=False)
class CircleEmbedder(PairEmbedder):
    """Circle loss: all pairs of an anchor under one logarithm, each weighted by its distance from its optimum [1]_.

    Positives that are already similar and negatives that are already dissimilar get small gradients; pairs that lag
    behind get large ones. Batches hold several samples of each of several classes, so classes must have several
    samples.

    Read more in the :ref:`User Guide <circle>`.

    Parameters
    ----------
    {LOSS_PARAMETERS}
    {BASE_PARAMETERS}

    Attributes
    ----------
    {BASE_ATTRIBUTES}

    See Also
    --------
    RAWEmbedder : Weights the positives and the negatives of an anchor separately.
    skdml.losses.CircleLoss : The loss on its own, for a torch loop.

    Notes
    -----
    The paper uses ``margin=0.25, scale=256`` for faces and ``scale=128`` for persons; the defaults are its values for
    fine-grained retrieval.

    References
    ----------
    .. [1] Y. Sun, C. Cheng, Y. Zhang, C. Zhang, L. Zheng, Z. Wang and Y. Wei, "Circle Loss: A Unified Perspective of
       Pair Similarity Optimization", CVPR 2020, arXiv:2002.10857.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skdml import CircleEmbedder, class_train_test_split
    >>> X, X_unseen, y, y_unseen = class_train_test_split(*load_digits(return_X_y=True))
    >>> embedder = CircleEmbedder(max_epochs=5, random_state=0).fit(X / 16, y)
    >>> bool(embedder.score(X_unseen / 16, y_unseen) > 0.9)
    True
    """

    _loss_class = CircleLoss

    margin: float = 0.4
    scale: float = 80.0

    _parameter_constraints = {**CircleLoss._parameter_constraints, **PairEmbedder._parameter_constraints}
