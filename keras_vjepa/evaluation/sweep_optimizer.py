"""AdamW for many networks side by side, each as if it were alone (§4.3, App. D.1)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import CosineSchedule

# Learning rate and weight decay of one network.
Candidate = tuple[float, float]


class SweepAdamW(AdamW):
    """Makes a step of AdamW for each of several networks, each as if it were alone.

    The learning rate of a network falls to 0 by a cosine.

    Args:
        networks: variables of each network.
        candidates: learning rate and weight decay of each network.
        constant_decay: whether weight decay stays as it is; otherwise it falls to 1e-6 by a cosine,
            as the authors' does.
        clip_norm: largest gradient norm of a network, or None.
        beta_1: decay of the first moment.
        beta_2: decay of the second moment.
        epsilon: added to the root of the bias-corrected second moment.
    """

    def __init__(
        self,
        networks: Sequence[Sequence[keras.Variable]],
        candidates: Sequence[Candidate],
        constant_decay: bool = False,
        clip_norm: float | None = 1.0,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(CosineSchedule(1.0, 0.0, 1), 0.0, beta_1, beta_2, epsilon, clip_norm)
        # A variable, because runs of different length share one compiled step.
        self.total_steps = self.add_variable((), "ones", name="total_steps")
        steps: Any = self.total_steps
        self.clip_separately(networks)
        # Networks with the same numbers are updated at once.
        groups: dict[Candidate, set[Any]] = {}
        for network, candidate in zip(networks, candidates, strict=True):
            groups.setdefault(candidate, set()).update(map(self._var_key, network))
        self._groups = [
            (
                keys,
                CosineSchedule(learning_rate, 0.0, steps),
                weight_decay if constant_decay else CosineSchedule(weight_decay, 1e-6, steps),
            )
            for (learning_rate, weight_decay), keys in groups.items()
        ]

    def _backend_apply_gradients(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable]
    ) -> None:
        for keys, learning_rate, weight_decay in self._groups:
            pairs = [
                (grad, variable)
                for grad, variable in zip(grads, trainable_variables, strict=True)
                if self._var_key(variable) in keys
            ]
            self._learning_rate, self._weight_decay = learning_rate, weight_decay
            super()._backend_apply_gradients(*(list(items) for items in zip(*pairs, strict=True)))

    def restart(self, total_steps: int) -> None:
        """Forget everything, for a run of that many steps."""
        for variable in self.variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        self.total_steps.assign(total_steps)
