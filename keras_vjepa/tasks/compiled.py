"""Save and restore how tasks on labels were compiled, with layer-wise decay (App. D.1)."""

from typing import Any

import keras

from keras_vjepa.arguments import check_whole
from keras_vjepa.backend.optimizer_state import inner_optimizers
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.families import RivalBackbone
from keras_vjepa.training.optimizer import AdamW

_OPTIMIZER_BUILT = "optimizer_built"


class CompiledTask(keras.Model):
    """Saves a task's optimizer with its variables, and tells it the layers that it decays by.

    This is a mixin for a model with the attribute below.

    Attributes:
        backbone: the backbone that has these layers.
    """

    backbone: keras.Model

    accumulation_steps: int

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configure training as `keras.Model.compile` does, and name layers for their decay.

        Args:
            args, kwargs: as in Keras, and `accumulation_steps`, the number of parts in which a
                device works through its share of a batch; see `VJEPAVideoClassifier.compile`.

        Raises:
            ValueError: for parts of a batch with a loss that is not the mean over samples.
        """
        accumulation_steps = kwargs.pop("accumulation_steps", 1)
        check_whole(1, accumulation_steps=accumulation_steps)
        loss = kwargs.get("loss", *args[1:2])
        self.accumulation_steps = accumulation_steps
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        if accumulation_steps > 1 and reduction not in ("mean", "sum_over_batch_size"):
            raise ValueError(
                "`accumulation_steps` must be 1 for a loss that is not the mean over samples. "
                f"Received: {accumulation_steps} with `reduction`={reduction!r}"
            )
        super().compile(*args, **kwargs)
        for inner in inner_optimizers(self.optimizer):
            if isinstance(inner, AdamW) and inner.layer_decay is not None and not inner.built:
                inner.decay_by_layer(self.layer_variables)

    def layer_variables(self) -> list[list[keras.Variable]]:
        """List the variables of each layer of the backbone, and last all others with the head's.

        Raises:
            ValueError: for a backbone that does not say which layers it has.
        """
        layers = own_backbone(self.backbone, "layer_decay").layer_variables()
        known = {id(variable) for variables in layers for variable in variables}
        rest = [variable for variable in self.variables if id(variable) not in known]
        return [*layers, rest]

    def get_compile_config(self) -> dict[str, Any] | None:
        """Return Keras' config, whether the optimizer has variables yet, and parts of a batch."""
        config = super().get_compile_config()
        if not config:
            return config
        several = self.accumulation_steps > 1
        parts = {"accumulation_steps": self.accumulation_steps} if several else {}
        return {**config, _OPTIMIZER_BUILT: self.optimizer.built, **parts}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile the model as it was when it was saved, with its optimizer's variables."""
        arguments = dict(keras.saving.deserialize_keras_object(config))
        is_built = arguments.pop(_OPTIMIZER_BUILT, True)
        self.compile(**arguments)
        if is_built:
            self.optimizer.build(self.trainable_variables)


def own_backbone(backbone: keras.Model, argument: str) -> VJEPABackbone | RivalBackbone:
    """Return a backbone of known layers, or refuse an argument that needs such a backbone.

    Args:
        backbone: the backbone of a task.
        argument: argument that needs its layers: `"encoder_norm"` or `"layer_decay"`.

    Raises:
        ValueError: for any other model.
    """
    if not isinstance(backbone, VJEPABackbone | RivalBackbone):
        remedy = {
            "encoder_norm": "`encoder_norm` must be True for",
            "layer_decay": "`layer_decay` must be None for",
        }[argument]
        raise ValueError(
            f"{remedy} a backbone that is no model of this package. "
            f"Received: {type(backbone).__name__}"
        )
    return backbone
