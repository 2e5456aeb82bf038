"""Linear centered kernel alignment from Gram matrices, for any number of sub-samples at once.

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   K = X X',  L = Y Y'

for features X (N, P) and Y (N, Q) of the same N inputs. 1: the same up to rotation and scale;
0: nothing in common.

Everything is computed from N x N Gram matrices, never from P x Q products: a layer's maps have
more features than there are inputs, a Gram matrix is a megabyte for 500 inputs however large the
layer, and every sub-sample's value follows from the same matrix.

Sources: Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019),
for CKA; Song et al., "Feature Selection via Dependence Maximization" (JMLR 2012), equation 5, and
Nguyen, Raghu, Kornblith (ICLR 2021) for the unbiased estimator of HSIC inside it.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["Estimator", "cka", "gram", "half_samples"]

Estimator = Literal["plain", "debiased"]

# Relative spread under which features are taken for constant: float32 rounding of their mean.
_CONSTANT = 1e-6


def gram(features: Tensor) -> Tensor:
    """Gram matrix of centred features, scaled to a mean diagonal of 1.

    Args:
        features: (N, ...), flattened here to (N, P). *Centred in place*, since it is the largest
            tensor of the whole measurement.

    Returns:
        (N, N) in the type of `features`; all zero when the features do not vary over inputs.
        Not finite where a feature is not.
    """
    flat = features.reshape(len(features), -1)
    scale = torch.linalg.vector_norm(flat)
    # Centring before the product, not after, is what keeps the digits when means are large.
    flat.sub_(flat.mean(0))
    products = flat @ flat.T
    total = products.diagonal().sum()
    if bool(total.sqrt() <= _CONSTANT * scale):
        return torch.zeros_like(products)
    return products * (len(products) / total)


def half_samples(n_inputs: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` random halves of the inputs, without replacement within a half.

    Returns:
        (count, n_inputs) float32, 1 for the `n_inputs // 2` inputs of each half and 0 elsewhere.
    """
    order = torch.rand(count, n_inputs, generator=generator).argsort(1)
    return (order < n_inputs // 2).float()


def cka(
    first: Tensor, second: Tensor, weights: Tensor | None = None, *, estimator: Estimator
) -> Tensor:
    """Linear CKA of Gram matrices over sub-samples of the inputs.

    Args:
        first: (..., N, N), as `gram` gives them; any number of matrices.
        second: (N, N) over the same inputs, compared with each of `first`.
        weights: (B, N) of 0 and 1, the inputs that each sub-sample holds, at least 4; `None` is
            the whole sample once.
        estimator: "plain" is biased upward when features are many and inputs few; "debiased" is
            not, and can be below 0.

    Returns:
        (..., B) in the type of the matrices; 0 where either side is constant.
    """
    if weights is None:
        weights = torch.ones(1, len(second), dtype=second.dtype, device=second.device)
    if estimator == "debiased":
        first, second = _without_diagonal(first), _without_diagonal(second)
    first_sums, second_sums = weights @ first, weights @ second  # (..., B, N), (B, N)
    cross = _hsic(first, second, first_sums, second_sums, weights, estimator)
    first_self = _hsic(first, first, first_sums, first_sums, weights, estimator)
    second_self = _hsic(second, second, second_sums, second_sums, weights, estimator)
    scale = (first_self.clamp_min(0) * second_self.clamp_min(0)).sqrt()
    return torch.where(scale > 0, cross / scale, torch.zeros_like(cross))


def _without_diagonal(matrices: Tensor) -> Tensor:
    return matrices - torch.diag_embed(matrices.diagonal(dim1=-2, dim2=-1))


def _hsic(
    first: Tensor,
    second: Tensor,
    first_sums: Tensor,
    second_sums: Tensor,
    weights: Tensor,
    estimator: Estimator,
) -> Tensor:
    """HSIC up to a factor that depends on the size of the sub-sample alone: (..., B).

    tr(K H L H) opened into sums over pairs, rows and the whole, so that a sub-sample is a row of
    weights and no matrix is cut out. The unbiased form is the same three sums of matrices without
    their diagonals, with other coefficients.
    """
    m = weights.sum(-1)
    if estimator == "plain":
        of_rows, of_whole = 2 / m, 1 / m**2
    else:
        of_rows, of_whole = 2 / (m - 2), 1 / ((m - 1) * (m - 2))
    pairs = ((weights @ (first * second)) * weights).sum(-1)
    rows = (weights * first_sums * second_sums).sum(-1)
    whole = (weights * first_sums).sum(-1) * (weights * second_sums).sum(-1)
    return pairs - of_rows * rows + of_whole * whole
