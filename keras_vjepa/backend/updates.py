"""Update all weights of a step, together if the backend runs op by op (§3.1, App. C).

Compilers see all variables of a step at once, so for them each function here has the plain form.
torch does not. It would make a call and a pass through memory for each of some hundred variables,
several times over; an accelerator would wait meanwhile, and a processor read again what it has just
written.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.backend.keras_internals import foreach, stored_value
from keras_vjepa.backend.token_ops import runs_op_by_op
from keras_vjepa.types import Tensor

Variables = Sequence[keras.Variable]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Holds the moving averages that Adam keeps of the gradient of each variable.

    Attributes:
        first: averages of the gradients.
        second: averages of their squares.
        largest: largest second moments so far, for AMSGrad; empty otherwise.
    """

    first: Variables
    second: Variables
    largest: Variables = ()


def _stored(variables: Sequence[Any]) -> list[Tensor]:
    return [stored_value(variable) for variable in variables]


def move_towards(targets: Variables, sources: Variables, rate: Tensor | float) -> None:
    """Move variables towards others: targets += rate * (sources - targets), in float32.

    Variables of integers, which are quantized kernels and states of random seeds, stay as they are.

    Args:
        targets: the variables to change.
        sources: as many variables, of the same shapes.
        rate: a scalar.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.updates import move_towards
    >>> target, source = keras.Variable([0.0, 0.0]), keras.Variable([4.0, 8.0])
    >>> move_towards([target], [source], 0.25)
    >>> keras.ops.convert_to_numpy(target).tolist()
    [1.0, 2.0]
    """
    targets, sources = (
        [one for one in variables if keras.backend.is_float_dtype(one.dtype)]
        for variables in (targets, sources)
    )
    if runs_op_by_op():
        import torch

        with torch.no_grad():
            values = _stored(targets)
            wanted = [value.to(torch.float32) for value in _stored(sources)]
            if all(value.is_cpu and value.dtype == torch.float32 for value in values):
                # One pass through memory, which is slow: 0.08 s for ViT-L's weights instead of 0.5.
                for value, source in zip(values, wanted, strict=True):
                    value.lerp_(source, rate)
                return
            changes = foreach("sub", wanted, [value.to(torch.float32) for value in values])
            foreach("mul_", changes, rate)
            foreach("add_", values, changes)
        return
    for target, source in zip(targets, sources, strict=True):
        change = rate * (ops.cast(source, "float32") - ops.cast(target, "float32"))
        target.assign_add(ops.cast(change, target.dtype))


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Compute the Euclidean norm of all numbers in `tensors` together, a float32 scalar.

    Example:

    >>> from keras import ops
    >>> from keras_vjepa.backend.updates import norm
    >>> round(float(norm([ops.ones((2, 4)), ops.ones((8,))])), 4)
    4.0
    """
    if runs_op_by_op():
        import torch

        # The kernel adds up in another type than that of the numbers only if it is a larger one.
        values = [x.to(torch.float32) if x.dtype == torch.float64 else x for x in tensors]
        norms = foreach("norm", values, 2, torch.float32)
        return torch.linalg.vector_norm(torch.stack(norms))
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(x, "float32"))) for x in tensors))


def scaled(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """Multiply each of `tensors` by a scalar; each keeps its own dtype."""
    if runs_op_by_op():
        products = foreach("mul", list(tensors), factor)
        return [product.to(x.dtype) for product, x in zip(products, tensors, strict=True)]
    return [x * ops.cast(factor, x.dtype) for x in tensors]


def all_finite(values: Sequence[Tensor]) -> Tensor:
    """Return 1.0 if there is no infinity and no NaN in `values`, else 0.0."""
    if runs_op_by_op():
        total = norm(_stored(values))
    else:
        total = sum(ops.sum(ops.cast(value, "float32")) for value in values)
    return ops.cast(ops.isfinite(total), "float32")


def mean_of_batches(
    sums: Variables, gradients: Sequence[Tensor], num_batches: int, due: Tensor
) -> list[Tensor]:
    """Add a batch's gradients to the sums so far, and start the sums again if an update is due.

    Args:
        sums: variables of the shapes of the gradients.
        gradients: the gradients of this batch.
        num_batches: number of batches whose mean an update takes.
        due: bool scalar, whether this batch is the last of them.

    Returns:
        The sums divided by `num_batches`; if an update is due, these are the mean gradients.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.updates import mean_of_batches
    >>> total, due = keras.Variable([3.0]), keras.ops.convert_to_tensor(True)
    >>> [mean] = mean_of_batches([total], [keras.ops.ones(1)], 2, due)
    >>> float(mean[0]), float(keras.ops.convert_to_numpy(total)[0])
    (2.0, 0.0)
    """
    if runs_op_by_op():
        import torch

        with torch.no_grad():
            values = _stored(sums)
            foreach("add_", values, list(gradients))
            means = foreach("mul", values, 1.0 / num_batches)
            foreach("mul_", values, 1.0 - due.to(torch.float32))
        return means
    means = []
    for total, gradient in zip(sums, gradients, strict=True):
        value = total + ops.cast(gradient, total.dtype)
        means.append(value / num_batches)
        total.assign(ops.where(due, ops.zeros_like(value), value))
    return means


def check_learning_dtype(variables: Variables) -> None:
    """Raise if a variable that is to be trained is kept in float16.

    In float16, the squares of small gradients, and the epsilon added to them, are 0.

    Raises:
        ValueError: for such a variable; the message names it and the dtypes that models learn in.
    """
    for variable in variables:
        if keras.backend.standardize_dtype(variable.dtype) == "float16":
            raise ValueError(
                "`dtype` must be 'mixed_float16', 'mixed_bfloat16', 'bfloat16' or 'float32' for "
                f"training. Received: 'float16', of {variable.path}"
            )


def by_scale(scales: Sequence[float]) -> dict[float, list[int]]:
    """Group variables by their scales.

    Args:
        scales: a number for each variable.

    Returns:
        The places of the variables of each scale; scales are in the order of their first place.

    Example:

    >>> from keras_vjepa.backend.updates import by_scale
    >>> by_scale([0.5, 1.0, 0.5])
    {0.5: [0, 2], 1.0: [1]}
    """
    groups: dict[float, list[int]] = {}
    for place, scale in enumerate(scales):
        groups.setdefault(scale, []).append(place)
    return groups


def decay(variables: Variables, rate: Tensor | float) -> None:
    """Shrink variables: variables -= rate * variables.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.updates import decay
    >>> variable = keras.Variable([2.0, 4.0])
    >>> decay([variable], 0.25)
    >>> keras.ops.convert_to_numpy(variable).tolist()
    [1.5, 3.0]
    """
    if not runs_op_by_op():
        for variable in variables:
            variable.assign_sub(ops.cast(rate, variable.dtype) * variable)
    elif variables:
        import torch

        with torch.no_grad():
            foreach("mul_", _stored(variables), 1.0 - rate)


def adam(
    variables: Variables,
    gradients: Sequence[Tensor],
    moments: Moments,
    step: Tensor,
    learning_rate: Tensor,
    betas: tuple[float, float],
    epsilon: float,
    due: Tensor | None = None,
) -> None:
    """Make one step of Adam, with epsilon added to the bias-corrected root.

    Args:
        variables: the weights.
        gradients: the gradient of each weight.
        moments: the moments of each weight.
        step: number of steps before this one, an integer scalar.
        learning_rate: a scalar.
        betas: decay of the first and of the second moment.
        epsilon: keeps the root from 0.
        due: bool scalar; if it is False, nothing changes. None means True.

    Example:

    >>> import keras
    >>> from keras_vjepa.backend.updates import Moments, adam
    >>> weight, first, second = keras.Variable([1.0]), keras.Variable([0.0]), keras.Variable([0.0])
    >>> zero, rate = keras.ops.zeros((), "int32"), keras.ops.full((), 0.5)
    >>> moments = Moments([first], [second])
    >>> adam([weight], [keras.ops.ones(1)], moments, zero, rate, (0.9, 0.999), 1e-8)
    >>> round(float(keras.ops.convert_to_numpy(weight)[0]), 5)
    0.5
    """
    if runs_op_by_op():
        _fused_adam(variables, gradients, moments, step, learning_rate, betas, epsilon, due)
        return
    step = ops.cast(step + 1, "float32")
    first_correction, second_correction = (_bias_correction(beta, step) for beta in betas)
    root_correction = ops.sqrt(second_correction)
    # The correction of the second moment is applied to these two scalars, not to every number.
    scale = learning_rate * root_correction / first_correction
    epsilon = epsilon * root_correction
    for i, (variable, gradient) in enumerate(zip(variables, gradients, strict=True)):
        kind = variable.dtype
        gradient = ops.cast(gradient, kind)
        first, second = moments.first[i], moments.second[i]
        first.assign_add(_if(due, (1.0 - betas[0]) * (gradient - first)))
        second.assign_add(_if(due, (1.0 - betas[1]) * (ops.square(gradient) - second)))
        if moments.largest:
            second = moments.largest[i]
            second.assign(ops.maximum(second, moments.second[i]))
        root = ops.sqrt(second) + ops.cast(epsilon, kind)
        variable.assign_sub(_if(due, ops.cast(scale, kind) * first / root))


def _if(due: Tensor | None, change: Tensor) -> Tensor:
    """Return a change, or zeros if it is not due."""
    return change if due is None else ops.where(due, change, ops.zeros_like(change))


def _bias_correction(beta: float, step: Tensor) -> Tensor:
    """Compute 1 - beta^step, exact where float32 would round a value close to 1."""
    return -ops.expm1(step * (math.log(beta) if beta else -math.inf))


def _fused_adam(
    variables: Variables,
    gradients: Sequence[Tensor],
    moments: Moments,
    step: Tensor,
    learning_rate: Tensor,
    betas: tuple[float, float],
    epsilon: float,
    due: Tensor | None,
) -> None:
    """Make a step of Adam by torch's kernel, which takes all variables at once."""
    import torch
    from torch.optim.adam import adam as torch_adam

    with torch.no_grad():
        torch_adam(
            _stored(variables),
            list(gradients),
            _stored(moments.first),
            _stored(moments.second),
            _stored(moments.largest),
            # The kernel counts this step itself, and needs a count for each variable.
            list(step.to(torch.float32).repeat(len(variables)).unbind()),
            fused=True,
            amsgrad=bool(moments.largest),
            beta1=betas[0],
            beta2=betas[1],
            lr=learning_rate,
            weight_decay=0.0,
            eps=epsilon,
            maximize=False,
            # If no update is due, the kernel changes nothing, as for gradients that overflowed.
            found_inf=None if due is None else 1.0 - due.to(torch.float32),
        )
