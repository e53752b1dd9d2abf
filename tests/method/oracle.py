"""What the methods' tests share: equations in plain float64, and gradients by central differences."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from advflyp.model.clip import CLIP

# Error of a central difference, h = 1e-6, of losses of up to 10 whose third derivatives are below 10⁴ (τ⁻³ = 14³):
# their rounding, 10·2⁻⁵³/h = 1e-9, and h²/6·10⁴ = 2e-9.
DIFFERENCES = 3e-9


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    total = math.log(sum(math.exp(value - top) for value in row)) + top
    return [value - total for value in row]


def cross_entropy(images: np.ndarray, classes: np.ndarray, labels: list[int], scale: float) -> float:
    """(1/N) Σ_i −log softmax(τ⁻¹ f_i·Tᵀ)_{y_i}."""
    rows = [
        log_softmax([scale * sum(a * b for a, b in zip(z, t, strict=True)) for t in classes]) for z in images
    ]
    return -sum(row[y] for row, y in zip(rows, labels, strict=True)) / len(images)


def divergence(a: np.ndarray, b: np.ndarray, classes: np.ndarray, scale: float) -> float:
    """(1/N) Σ_i KL(P_a,i ‖ P_b,i) = Σ_k P_a log(P_a / P_b)."""
    total = 0.0
    for row_a, row_b in zip(a, b, strict=True):
        log_a = log_softmax([scale * float(np.dot(row_a, t)) for t in classes])
        log_b = log_softmax([scale * float(np.dot(row_b, t)) for t in classes])
        total += sum(math.exp(p) * (p - q) for p, q in zip(log_a, log_b, strict=True))
    return total / len(a)


def deviation(a: np.ndarray, b: np.ndarray) -> float:
    """(1/N) Σ_i ‖a_i − b_i‖₂."""
    return sum(
        math.sqrt(sum((x - y) ** 2 for x, y in zip(p, q, strict=True))) for p, q in zip(a, b, strict=True)
    ) / len(a)


def numeric_gradient(f: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-6) -> np.ndarray:
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (f(up) - f(down)) / (2 * h)
    return gradient


def check(loss: Tensor, equation: Callable[..., float], model: CLIP, **embeddings: Tensor) -> None:
    """The loss has the equation's value, and its gradient reaches the weights through `embeddings` and nothing else.

    equation: of the embeddings, all float64; those that require gradients are the branches that pass them
    """
    values = {name: tensor.detach().numpy() for name, tensor in embeddings.items()}
    expected = equation(**values)
    assert abs(loss.item() - expected) <= 1e-9 * abs(expected), (loss.item(), expected)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    branches = {name: tensor for name, tensor in embeddings.items() if tensor.requires_grad}
    slopes = [
        torch.from_numpy(numeric_gradient(lambda x, name=name: equation(**{**values, name: x}), values[name]))
        for name in branches
    ]
    ours = torch.autograd.grad(loss, weights, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(list(branches.values()), weights, slopes, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            # The differences' error, of slopes of 0.01 at least, as the tower passes it on.
            assert (mine - other).norm() <= 1e-6 * other.norm() + DIFFERENCES
