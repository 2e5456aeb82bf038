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

__all__ = ["Estimator", "Side", "cka", "gram", "gram_stack", "half_samples"]

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
    products, norm = _products(features)
    return _scaled(products[None], norm[None])[0]


def gram_stack(features: dict[str, Tensor]) -> Tensor:
    """Gram matrices (L, N, N) of the features (N, ...) of L layers, as `gram` makes each.

    Args:
        features: Of one type, one layer or more; *emptied*, layer by layer.
    """
    made = [_products(features.pop(layer)) for layer in tuple(features)]
    return _scaled(
        torch.stack([products for products, _ in made]), torch.stack([norm for _, norm in made])
    )


def _products(features: Tensor) -> tuple[Tensor, Tensor]:
    """Products (N, N) of centred features, and the norm () that all had before."""
    flat = features.reshape(len(features), -1)
    norm = torch.linalg.vector_norm(flat)
    # Centring before the product, not after, is what keeps the digits when means are large.
    flat.sub_(flat.mean(0))
    return flat @ flat.T, norm


def _scaled(products: Tensor, norms: Tensor) -> Tensor:
    """Bring products (L, N, N) to a mean diagonal of 1, or to zero where features are constant."""
    totals = products.diagonal(dim1=-2, dim2=-1).sum(-1)
    # By `where`, since a branch would wait for the card.
    constant = totals.sqrt() <= _CONSTANT * norms
    scaled = products * (products.shape[-1] / totals)[:, None, None]
    return torch.where(constant[:, None, None], torch.zeros_like(products), scaled)


def half_samples(n_inputs: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` random halves of the inputs, without replacement within a half.

    Returns:
        (count, n_inputs) float32, 1 for the `n_inputs // 2` inputs of each half and 0 elsewhere.
    """
    order = torch.rand(count, n_inputs, generator=generator).argsort(1)
    return (order < n_inputs // 2).float()


class Side:
    """One side of a comparison: Gram matrices, and what CKA over sub-samples needs of them alone.

    Worked out once, it serves comparisons with any number of other sides.

    Args:
        matrix: (N, N), as `gram` gives it, or (L, N, N) of as many layers.
        weights: (B, N) of 0 and 1, the inputs that each sub-sample holds, at least 4; `None` is
            the whole sample once.
        estimator: "plain" is biased upward when features are many and inputs few; "debiased" is
            not, and can be below 0.
    """

    def __init__(self, matrix: Tensor, weights: Tensor | None, estimator: Estimator) -> None:
        if weights is None:
            weights = torch.ones(1, matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        if estimator == "debiased":
            matrix = matrix.clone()
            matrix.diagonal(dim1=-2, dim2=-1).zero_()
        self.matrix, self.weights, self.estimator = matrix, weights, estimator
        self.sums = weights @ matrix  # (B, N), or (L, B, N)
        self.own = _hsic(self, self).clamp_min(0)  # (B,), or (L, B)


def cka(first: Side, second: Side) -> Tensor:
    """Linear CKA (B,), or (L, B), of two sides over the same sub-samples; 0 of what is constant."""
    cross = _hsic(first, second)
    scale = (first.own * second.own).sqrt()
    return torch.where(scale > 0, cross / scale, torch.zeros_like(cross))


def _hsic(first: Side, second: Side) -> Tensor:
    """HSIC up to a factor that depends on the size of the sub-sample alone: (B,), or (L, B).

    tr(K H L H) opened into sums over pairs, rows and the whole, so that a sub-sample is a row of
    weights and no matrix is cut out. The unbiased form is the same three sums of matrices without
    their diagonals, with other coefficients.
    """
    weights = first.weights
    m = weights.sum(-1)
    if first.estimator == "plain":
        of_rows, of_whole = 2 / m, 1 / m**2
    else:
        of_rows, of_whole = 2 / (m - 2), 1 / ((m - 1) * (m - 2))
    pairs = ((weights @ (first.matrix * second.matrix)) * weights).sum(-1)
    rows = (weights * first.sums * second.sums).sum(-1)
    whole = (weights * first.sums).sum(-1) * (weights * second.sums).sum(-1)
    return pairs - of_rows * rows + of_whole * whole
