"""Find the weights that a loss depends on, on JAX, which gives the others zeros (App. C).

The other engines give no gradient to a weight that the loss does not depend on, and an optimizer
leaves it as it is. A gradient of zeros would let weight decay shrink it, step by step.
"""

from collections.abc import Callable, Sequence
from typing import Any


class ReachedWeights:
    """Notes which weights a backward pass on JAX reaches, while it is traced.

    Example:

    >>> import jax  # doctest: +SKIP
    >>> reached = ReachedWeights(2)  # doctest: +SKIP
    >>> jax.grad(lambda weights: reached.watched(weights)[0] ** 2)([3.0, 4.0])  # doctest: +SKIP
    [Array(6., dtype=float32), Array(0., dtype=float32)]
    >>> reached.of([6.0, 0.0])  # doctest: +SKIP
    [6.0, None]

    Args:
        count: number of the weights.
    """

    def __init__(self, count: int) -> None:
        self._reached = [False] * count

    def watched(self, weights: Sequence[Any]) -> list[Any]:
        """Return the weights in a form that must be used to compute the loss."""
        return [
            _noted(weight, lambda i=i: self._note(i))  # type: ignore[misc]
            for i, weight in enumerate(weights)
        ]

    def of(self, gradients: Sequence[Any]) -> list[Any]:
        """Return the gradients, with None for weights that the backward pass did not reach."""
        pairs = zip(gradients, self._reached, strict=True)
        return [gradient if reached else None for gradient, reached in pairs]

    def _note(self, i: int) -> None:
        self._reached[i] = True


def _noted(weight: Any, note: Callable[[], None]) -> Any:
    import jax

    @jax.custom_vjp
    def same(value: Any) -> Any:
        return value

    def backward(_: None, gradient: Any) -> tuple[Any]:
        # JAX calls this while it traces the pass, and only for weights that the loss depends on.
        note()
        return (gradient,)

    same.defvjp(lambda value: (value, None), backward)
    return same(weight)
