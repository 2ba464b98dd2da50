"""Optimize with AdamW: scheduled decay, clipping per network, rates by layer (App. C, App. D.3).

Departure from the paper's text, as in the authors' code: gradients are clipped, each network by its
own norm, and clipping begins one epoch after the warm-up.

Keras' own AdamW differs in four ways that matter here: it adds epsilon before the bias correction;
it rounds that correction (an error of 6e-6 of the first step at beta 0.999, which shows in the
golden losses); its weight decay must be a number; and it clips all variables together.
"""

import dataclasses
import functools
import numbers
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_vjepa.arguments import check_flag, check_number, check_whole
from keras_vjepa.backend import collectives, keras_internals, updates
from keras_vjepa.backend.observations import observe
from keras_vjepa.types import Tensor

_CLIPS = "`clip_norm`, the largest norm of the gradient of a network"
_AVERAGES = "`keras.optimizers.AdamW`, or the target encoder of a pretrainer"
# Arguments of Keras' optimizers that this one does not support: the value that means "off", and
# what to use instead.
_OFF: dict[str, tuple[Any, str]] = {
    "clipnorm": (None, _CLIPS),
    "clipvalue": (None, _CLIPS),
    "global_clipnorm": (None, _CLIPS),
    "use_ema": (False, _AVERAGES),
    "ema_momentum": (0.99, _AVERAGES),
    "ema_overwrite_frequency": (None, _AVERAGES),
}


Layers = Callable[[], Sequence[Sequence[keras.Variable]]]


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Holds the variables that an optimizer was built for, and the moments of each."""

    variables: Sequence[keras.Variable]
    moments: updates.Moments

    def positions(self, variables: Sequence[keras.Variable]) -> list[int]:
        known = {id(variable): i for i, variable in enumerate(self.variables)}
        unknown = [variable.path for variable in variables if id(variable) not in known]
        if unknown:
            raise ValueError(
                "`trainable_variables` must be among those that the optimizer was built for. "
                f"Received: {unknown[0]}"
            )
        return [known[id(variable)] for variable in variables]


# Dtype policies of Keras in which models learn. float16 is not among them: its weights are too
# coarse for the small changes of an update.
LEARNING_DTYPES = ("float32", "bfloat16", "mixed_bfloat16", "mixed_float16")


def check_moments(beta_1: float, beta_2: float, epsilon: float, clip_norm: float | None) -> None:
    """Check the arguments of `AdamW` that all optimizers derived from it share.

    Raises:
        ValueError: for the first argument that is out of range.
    """
    check_number("[0, 1)", beta_1=beta_1, beta_2=beta_2)
    check_number("[0, inf)", epsilon=epsilon)
    check_number("(0, inf)", optional=True, clip_norm=clip_norm)


def check_updates(amsgrad: bool, loss_scale_factor: float | None) -> None:
    """Check further arguments of `AdamW` that its updates depend on.

    Raises:
        ValueError: for the first argument that is out of range.
    """
    check_number("(0, inf)", optional=True, loss_scale_factor=loss_scale_factor)
    check_flag(amsgrad=amsgrad)


@keras.saving.register_keras_serializable("keras_vjepa")
class AdamW(keras.optimizers.Optimizer):
    """Optimizes like the reference's AdamW: scheduled decay, epsilon after the bias correction.

    An update clips the gradients, then decays, `p -= lr * weight_decay * p` (never for 1-D
    variables), then moves, `p -= lr * m_hat / (sqrt(v_hat) + epsilon)`.

    Args:
        learning_rate: float or schedule. Schedules count batches, as those of Keras do; with
            `gradient_accumulation_steps` there are several batches to an update.
        weight_decay: float or schedule.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the bias-corrected second moment.
        clip_norm: largest gradient norm of a network, or None. The networks are those given to
            `clip_separately`; without that call, all variables are one network.
        clip_after: number of batches before clipping begins.
        name: name of the optimizer, which is also in the paths of its variables.
        amsgrad: whether to divide by the largest second moment so far.
        loss_scale_factor: the factor that the loss was multiplied by; gradients are divided by it.
        gradient_accumulation_steps: None, or the number of batches, at least 2, whose mean gradient
            an update takes; it is the mean that is clipped; see `accumulation_steps` of
            `VJEPAPretrainer.compile` to work through one batch in parts.
        layer_decay: None, or the factor, in (0, 1], by which step and decay of a layer are smaller
            than those of the layer above it, so that fine-tuning changes layers close to the pixels
            least. A `VJEPAVideoClassifier` names its layers when it is compiled; for another model
            call `decay_by_layer`.
        off: other arguments of Keras' optimizers, which must have the value that means "off".

    Raises:
        ValueError: for arguments out of range, and for arguments of Keras that are not off.

    Example:

    >>> from keras_vjepa.training.optimizer import AdamW
    >>> from keras_vjepa.training.schedules import CosineSchedule
    >>> optimizer = AdamW(1e-3, weight_decay=CosineSchedule(0.04, 0.4, 1000), clip_norm=10.0)
    >>> round(float(optimizer.weight_decay), 4)
    0.04
    """

    _trained: _Trained | None = None

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 1e-3,
        weight_decay: float | LearningRateSchedule = 0.01,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        clip_norm: float | None = None,
        clip_after: int = 0,
        name: str = "adamw",
        amsgrad: bool = False,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        layer_decay: float | None = None,
        **off: Any,
    ) -> None:
        _check_off(off)
        # Only numbers are checked here: schedules check their own, and variables change anyway.
        if isinstance(learning_rate, numbers.Number | str | None):
            check_number("[0, inf)", learning_rate=learning_rate)
        if isinstance(weight_decay, numbers.Number | str | None):
            check_number("[0, inf)", weight_decay=weight_decay)
        check_moments(beta_1, beta_2, epsilon, clip_norm)
        check_updates(amsgrad, loss_scale_factor)
        check_number("(0, 1]", optional=True, layer_decay=layer_decay)
        check_whole(0, clip_after=clip_after)
        check_whole(2, optional=True, gradient_accumulation_steps=gradient_accumulation_steps)
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
        )
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.clip_norm = clip_norm
        self.clip_after = clip_after
        self.amsgrad = amsgrad
        self.layer_decay = layer_decay
        self._layers_of_model: Layers | None = None
        self._scales: dict[int, float] = {}
        self._networks: list[set[int]] = []
        self._names: list[str] = []
        self._logged: dict[str, set[int]] = {}
        self._not_decayed: set[int] = set()
        self._not_decayed_names: list[str] = []

    # --- Before training -------------------------------------------------------------------------

    @property
    def weight_decay(self) -> Any:
        """Return the weight decay of the next update: a number, or a scalar tensor if scheduled."""
        if isinstance(self._weight_decay, LearningRateSchedule):
            return self._weight_decay(keras_internals.batch_count(self))
        return self._weight_decay

    @weight_decay.setter
    def weight_decay(self, value: float | LearningRateSchedule) -> None:
        self._weight_decay = value

    def clip_separately(
        self, networks: Sequence[Sequence[keras.Variable]], names: Sequence[str] = ()
    ) -> None:
        """Clip each of these groups of variables by its own norm. Call before training.

        If another optimizer trains a part of a group, the norm is that of the rest.

        Args:
            networks: the groups.
            names: names of the groups, under which each step logs the norms before clipping;
                without names, no norms are logged.
        """
        self._networks = [{id(variable) for variable in network} for network in networks]
        self._names = list(names)

    def log_norms(self, networks: Mapping[str, Sequence[keras.Variable]]) -> None:
        """Have each step log the gradient's norm of some variables, as it is before clipping.

        Args:
            networks: the variables by their name in the logs, after `gradient_norm_`.
        """
        self._logged = {
            name: {id(variable) for variable in network} for name, network in networks.items()
        }

    def exclude_from_weight_decay(
        self,
        var_list: Sequence[keras.Variable] | None = None,
        var_names: Sequence[str] | None = None,
    ) -> None:
        """Exempt variables from decay, besides those of one axis or none. Call before training.

        Args:
            var_list: the variables.
            var_names: regular expressions; a variable is exempt if one of them matches in its name.
        """
        if self.built:
            raise ValueError("`exclude_from_weight_decay` must be called before `build`.")
        self._not_decayed |= {id(variable) for variable in var_list or ()}
        self._not_decayed_names += list(var_names or ())

    def decay_by_layer(self, layers: "Layers") -> None:
        """Say which variables belong to which layer, for `layer_decay`. Call before training.

        Args:
            layers: a function without arguments, called when training begins. It returns the
                variables of each layer, from the input to the output. A variable that is in no
                layer is treated like those of the last.

        Raises:
            ValueError: if training has begun.

        Example:

        >>> import keras
        >>> from keras_vjepa import AdamW
        >>> below, above = keras.Variable([1.0]), keras.Variable([1.0])
        >>> optimizer = AdamW(0.1, layer_decay=0.5)
        >>> optimizer.decay_by_layer(lambda: [[below], [above]])
        >>> optimizer.build([below, above])
        >>> optimizer.scales([below, above])
        [0.5, 1.0]
        """
        if self.built:
            raise ValueError("`decay_by_layer` must be called before `build`.")
        self._layers_of_model = layers

    def scales(self, variables: Sequence[keras.Variable]) -> list[float]:
        """Return the factor that step and decay of each variable are multiplied by.

        Args:
            variables: variables among those that the optimizer was built for.
        """
        return [self._scales.get(id(variable), 1.0) for variable in variables]

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Make the moments of these variables; a second call does nothing.

        Raises:
            ValueError: for a variable in float16, and if `layer_decay` is given but no layers are.
        """
        if self.built:
            return
        variables = list(variables)
        if self.layer_decay is not None:
            self._scales = self._scales_of_layers(self.layer_decay)
        updates.check_learning_dtype(variables)
        super().build(variables)
        first, second = self.add_optimizer_variables(variables, ["momentum", "velocity"])
        largest: Any = ()
        if self.amsgrad:
            largest = self.add_optimizer_variables(variables, "velocity_hat")
        self._trained = _Trained(variables, updates.Moments(first, second, largest))

    def _scales_of_layers(self, layer_decay: float) -> dict[int, float]:
        if self._layers_of_model is None:
            raise ValueError(
                "`layer_decay` must be None for a model that does not say which layers it has: "
                f"call `decay_by_layer` before training. Received: {layer_decay}"
            )
        layers = self._layers_of_model()
        return {
            id(variable): layer_decay ** (len(layers) - 1 - number)
            for number, variables in enumerate(layers)
            for variable in variables
        }

    # --- A step ----------------------------------------------------------------------------------

    def apply(
        self,
        grads: Sequence[Tensor | None],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Take the gradients of a batch, and count it; change the variables if an update is due.

        Args:
            grads: the gradient of each variable; None for one that the loss does not depend on.
            trainable_variables: the variables; None for those that the optimizer was built for.
        """
        if trainable_variables is not None:
            self.build(trainable_variables)
        elif self._trained is None:
            raise ValueError("`trainable_variables` must be given before the optimizer is built.")
        else:
            trainable_variables = self._trained.variables
        own_gradients, variables = _where_there_is_one(grads, trainable_variables)
        gradients = collectives.sum_over_replicas(own_gradients)
        if self.loss_scale_factor is not None:
            gradients = [gradient / self.loss_scale_factor for gradient in gradients]
        due = None
        if self.gradient_accumulation_steps:
            due = (self._batches() + 1) % self.gradient_accumulation_steps == 0
            gradients = self._mean_of_batches(gradients, variables, due)
        for name, network in self._logged.items():
            own = [g for g, v in zip(gradients, variables, strict=True) if id(v) in network]
            if own:  # it is empty if all of them are frozen
                observe(f"gradient_norm_{name}", functools.partial(updates.norm, own))
        if self.clip_norm is not None:
            gradients = self._clip(gradients, variables)
        self.move(gradients, variables, self.learning_rate, self.weight_decay, due)
        for variable in variables:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))
        # `assign_add` would copy the number 1 to the device and wait for it.
        keras_internals.batch_count(self).assign(self._batches() + 1)

    def _batches(self) -> Tensor:
        """Return the number of batches so far.

        Keras' `iterations` counts updates instead, and reading it costs a copy on torch.
        """
        return ops.convert_to_tensor(keras_internals.batch_count(self))

    def _mean_of_batches(
        self, gradients: Sequence[Tensor], variables: Sequence[keras.Variable], due: Tensor
    ) -> list[Tensor]:
        assert self._trained is not None
        sums = keras_internals.gradient_accumulators(self)
        own_sums = [sums[i] for i in self._trained.positions(variables)]
        return updates.mean_of_batches(own_sums, gradients, self.gradient_accumulation_steps, due)

    def move(
        self,
        gradients: Sequence[Tensor],
        variables: Sequence[keras.Variable],
        learning_rate: Any,
        weight_decay: Any,
        due: Tensor | None = None,
    ) -> None:
        """Decay the variables, then move them by Adam along their clipped gradients.

        Args:
            gradients: the gradients of the variables.
            variables: variables among those that the optimizer was built for.
            learning_rate: learning rate of this update.
            weight_decay: weight decay of this update.
            due: bool scalar; if it is False, nothing changes. None means True.
        """
        # A tensor, not a variable: multiplying a variable by a number copies it to the device.
        learning_rate = ops.convert_to_tensor(learning_rate)
        if not self._scales:
            self._move(gradients, variables, learning_rate, weight_decay, due)
            return
        for scale, places in updates.by_scale(self.scales(variables)).items():
            mine = [gradients[i] for i in places], [variables[i] for i in places]
            self._move(*mine, learning_rate * scale, weight_decay, due)

    def _move(
        self,
        gradients: Sequence[Tensor],
        variables: Sequence[keras.Variable],
        learning_rate: Tensor,
        weight_decay: Any,
        due: Tensor | None,
    ) -> None:
        """Decay and move variables that share a learning rate."""
        decayed = [variable for variable in variables if self._is_decayed(variable)]
        decay_rate = learning_rate * weight_decay
        if due is not None:
            decay_rate = decay_rate * ops.cast(due, "float32")
        updates.decay(decayed, decay_rate)
        updates.adam(
            variables,
            gradients,
            self._moments_of(variables),
            self._batches() // (self.gradient_accumulation_steps or 1),
            learning_rate,
            (self.beta_1, self.beta_2),
            self.epsilon,
            due,
        )

    def _moments_of(self, variables: Sequence[keras.Variable]) -> updates.Moments:
        assert self._trained is not None
        positions, kept = self._trained.positions(variables), self._trained.moments
        return updates.Moments(
            [kept.first[i] for i in positions],
            [kept.second[i] for i in positions],
            [kept.largest[i] for i in positions] if kept.largest else (),
        )

    def _is_decayed(self, variable: keras.Variable) -> bool:
        if len(variable.shape) < 2 or id(variable) in self._not_decayed:
            return False
        return not any(re.search(name, variable.name) for name in self._not_decayed_names)

    def _clip(
        self, gradients: Sequence[Tensor], variables: Sequence[keras.Variable]
    ) -> list[Tensor]:
        clipped = list(gradients)
        keys = [id(variable) for variable in variables]
        active = self._batches() >= self.clip_after
        for position, network in enumerate(self._networks or [set(keys)]):
            members = [i for i, key in enumerate(keys) if key in network]
            if not members:  # frozen
                continue
            whole = [gradients[i] for i in members]
            # The factor is at most 1, and exactly 1 before clipping begins. `ones_like` makes this
            # 1 on the device; a Python number would be copied there.
            norm = updates.norm(whole)
            for name in self._names[position : position + 1]:
                observe(f"gradient_norm_{name}", functools.partial(ops.convert_to_tensor, norm))
            allowed = self.clip_norm / (norm + 1e-6)
            one = ops.ones_like(allowed)
            factor = ops.where(active, ops.minimum(one, allowed), one)
            for i, gradient in zip(members, updates.scaled(whole, factor), strict=True):
                clipped[i] = gradient
        return clipped

    # --- Configuration ---------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        weight_decay: Any = self._weight_decay
        if isinstance(weight_decay, LearningRateSchedule):
            weight_decay = keras.saving.serialize_keras_object(weight_decay)
        return {
            "learning_rate": super().get_config()["learning_rate"],
            "weight_decay": weight_decay,
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "clip_norm": self.clip_norm,
            "clip_after": self.clip_after,
            "name": self.name,
            "amsgrad": self.amsgrad,
            "loss_scale_factor": self.loss_scale_factor,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "layer_decay": self.layer_decay,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        # Files written before version 0.1 hold all arguments of Keras' optimizers.
        config = {name: value for name, value in config.items() if name != "ema_momentum"}
        for name in ("learning_rate", "weight_decay"):
            if isinstance(config.get(name), dict):
                config[name] = keras.saving.deserialize_keras_object(
                    config[name], custom_objects=custom_objects
                )
        return cls(**config)


def _check_off(given: dict[str, Any]) -> None:
    """Raise unless all arguments are ones of Keras' optimizers, with values that mean "off"."""
    for name, value in given.items():
        if name not in _OFF:
            raise TypeError(f"AdamW has no argument `{name}`. Received: {value}")
        off, instead = _OFF[name]
        if value != off:
            raise ValueError(f"`{name}` must be {off} for AdamW: take {instead}. Received: {value}")


def _where_there_is_one(
    gradients: Sequence[Tensor | None], variables: Sequence[keras.Variable]
) -> tuple[list[Tensor], list[keras.Variable]]:
    """Return the gradients that are not None, and their variables; warn of the others."""
    pairs = list(zip(gradients, variables, strict=True))
    without = [variable.path for gradient, variable in pairs if gradient is None]
    if len(without) == len(pairs):
        raise ValueError("`grads` must hold a gradient of at least one variable. Received: none")
    if without:
        warnings.warn(
            f"The loss does not depend on {len(without)} variables: {', '.join(without[:3])}, ...",
            stacklevel=3,
        )
    there = [(gradient, variable) for gradient, variable in pairs if gradient is not None]
    return [gradient for gradient, _ in there], [variable for _, variable in there]
