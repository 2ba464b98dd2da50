"""Update many networks side by side by AdamW, each as if it were alone (§4.3, App. D.1)."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import CosineSchedule

# Learning rate and weight decay of one network.
Candidate = tuple[float, float]


class SweepAdamW(AdamW):
    """Updates several networks by AdamW, each as if it were alone.

    The learning rate of a network falls to 0 by a cosine.

    Args:
        networks: variables of each network.
        candidates: learning rate and weight decay of each network.
        constant_decay: whether weight decay stays constant; otherwise it falls to 1e-6 by a cosine,
            as in the authors' code.
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
        # This is a variable because runs of different length share one compiled step.
        self.total_steps = self.add_variable((), "ones", name="total_steps")
        steps: Any = self.total_steps
        self.clip_separately(networks)
        # Networks with the same learning rate and weight decay are updated at once.
        self._groups: dict[Candidate, set[int]] = {}
        for network, candidate in zip(networks, candidates, strict=True):
            self._groups.setdefault(candidate, set()).update(map(id, network))
        self._schedules = {
            (rate, decay): (
                CosineSchedule(rate, 0.0, steps),
                decay if constant_decay else CosineSchedule(decay, 1e-6, steps),
            )
            for rate, decay in self._groups
        }

    def move(
        self,
        gradients: Sequence[Any],
        variables: Sequence[keras.Variable],
        learning_rate: Any,
        weight_decay: Any,
        due: Any = None,
    ) -> None:
        """Update each network as AdamW does, by its candidate's learning rate and weight decay."""
        for candidate, members in self._groups.items():
            mine = [i for i, variable in enumerate(variables) if id(variable) in members]
            rate, decay = self._schedules[candidate]
            super().move(
                [gradients[i] for i in mine],
                [variables[i] for i in mine],
                rate(self.iterations),
                decay(self.iterations) if callable(decay) else decay,
                due,
            )

    def restart(self, total_steps: int) -> None:
        """Reset all state for a run of `total_steps`."""
        for variable in self.variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        self.total_steps.assign(total_steps)
