"""Probe frozen features by attentive or average pooling and a linear layer (§4.3, App. D.1).

Departures from the paper's text, as in the authors' code: those of `layers/pooling.py`; there
is nothing between the pooler and the linear layer. The probe on average-pooled features (Tables 3
and 13) is not in the authors' code; here it is a mean and then a linear layer.
"""

import math
from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_vjepa.arguments import MOST_LONG, arguments_of, check_choice, check_number, check_whole
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.layers.pooling import AttentivePooler, attend_together
from keras_vjepa.models.exporting import Exportable
from keras_vjepa.types import Tensor

# More classes than any set of videos or images has.
MOST_CLASSES = 2**22
_NO_PRESET = (
    "A probe alone has no preset: use `VJEPAVideoClassifier.save_to_preset` with its backbone, or "
    "`save` for a .keras file."
)


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPAProbe(KeepsLayerStates, StepFunctions, TorchModule, Exportable):
    """Classifies tokens by pooling them and applying a linear layer (§4.3, App. D.1).

    It is a model by itself, which can be fitted on features that were computed once, and it is the
    part of a `VJEPAVideoClassifier` that learns. The weights are made when it is first called, or
    by `build`.

    Args:
        num_classes: width of the logits.
        num_heads: attention heads; as many as the encoder's in the reference. Average pooling does
            not use it.
        num_layers: 1 for the cross-attention alone; each further layer is a transformer block.
        pooling: `"attentive"`, or `"average"` for the mean over the tokens (Tables 3 and 13).
        mlp_ratio: width of the MLP's hidden layer over the tokens' width.
        layer_norm_epsilon: epsilon of every norm.
        head_dim: width of a head; see `AttentivePooler`.
        self_attention: `"query"` or `"tokens"`; see `AttentivePooler`.

    Call arguments:
        tokens: `(batch, tokens, dim)`.

    Returns:
        Logits `(batch, num_classes)`, in the dtype of the weights also under mixed precision.

    Raises:
        ValueError: for tokens of another rank, or of another width than those it was built for.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPAProbe
    >>> probe = VJEPAProbe(num_classes=4, num_heads=2)
    >>> tuple(probe(np.ones((3, 5, 8), "float32")).shape)
    (3, 4)
    """

    def __init__(
        self,
        num_classes: int,
        num_heads: int | None = None,
        num_layers: int = 1,
        pooling: str = "attentive",
        mlp_ratio: float = 4.0,
        layer_norm_epsilon: float = 1e-5,
        head_dim: int | None = None,
        self_attention: str = "query",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_whole(1, MOST_CLASSES, num_classes=num_classes)
        check_probe(
            num_heads, num_layers, mlp_ratio, layer_norm_epsilon, pooling, head_dim, self_attention
        )
        if pooling == "attentive" and num_heads is None:
            raise ValueError("`num_heads` must be given for attentive pooling. Received: None")
        self.num_classes = num_classes
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.pooling = pooling
        self.mlp_ratio = mlp_ratio
        self.layer_norm_epsilon = layer_norm_epsilon
        self.head_dim = head_dim
        self.self_attention = self_attention

    @classmethod
    def number_of_weights(cls, dim: int, **arguments: Any) -> int:
        """Check constructor arguments, and count the numbers in the weights without making any.

        Args:
            dim: width of the tokens.
            arguments: arguments of the constructor; those left out have its defaults.

        Raises:
            ValueError: for unknown or missing names, and for values as the constructor does.
        """
        own = arguments_of(cls, arguments)
        # The constructor makes no weights.
        cls(**own)
        linear = (dim + 1) * own["num_classes"]
        if own["pooling"] == "average":
            return linear
        mlp_dim, head_dim = int(dim * own["mlp_ratio"]), own["head_dim"]
        mlp = 2 * dim + (dim + 1) * mlp_dim + (mlp_dim + 1) * dim
        width = dim if head_dim is None else own["num_heads"] * head_dim
        projections = 3 * (dim + 1) * width + (0 if head_dim is None else (width + 1) * dim)
        block = 2 * dim + 4 * (dim + 1) * dim + mlp
        # `3 * dim` are the query token and the norm of the tokens.
        return linear + 3 * dim + projections + mlp + (own["num_layers"] - 1) * block

    def build(self, tokens_shape: Sequence[int | None]) -> None:
        if self.built:
            return
        dim = token_width(tokens_shape)
        if self.pooling == "attentive":
            self.pooler = AttentivePooler(
                self.num_heads,  # type: ignore[arg-type]
                self.num_layers,
                self.mlp_ratio,
                self.layer_norm_epsilon,
                self.head_dim,
                self.self_attention,
                name="pooler",
                dtype=self.dtype_policy,
            )
            self.pooler.build(tokens_shape)
        # The reference leaves this linear layer, and no other, as its framework initializes it.
        uniform = keras.initializers.RandomUniform(-1 / math.sqrt(dim), 1 / math.sqrt(dim))
        self.linear = keras.layers.Dense(
            self.num_classes,
            kernel_initializer=uniform,
            bias_initializer=uniform.clone(),
            name="linear",
            # Half precision would round the logits, and small differences would be lost to the
            # loss.
            dtype=self.dtype_policy.variable_dtype,
        )
        self.linear.build((None, dim))
        self.built = True
        self.restore_layer_states()

    def call(self, tokens: Tensor) -> Tensor:
        self._check_width(tokens)
        if self.pooling == "attentive":
            return self.linear(self.pooler(tokens))
        return self.linear(ops.mean(tokens, axis=1))

    def attention_weights(self, tokens: Tensor) -> Tensor:
        """Compute by how much the probe's query attends to each token.

        Args:
            tokens: as in the call.

        Returns:
            float32 `(batch, heads, tokens)`; over the tokens they sum to one.

        Raises:
            ValueError: for average pooling, and for wrong tokens as in the call.
        """
        check_choice(("attentive",), pooling=self.pooling)
        self._check_width(tokens)
        return self.pooler.attention_weights(tokens)

    def _check_width(self, tokens: Tensor) -> None:
        dim = token_width(tokens.shape)
        if dim != self.linear.kernel.shape[0]:
            raise ValueError(
                f"The width of the tokens must be {self.linear.kernel.shape[0]}, which the probe "
                f"was built for. Received: {dim}"
            )

    @staticmethod
    def call_together(probes: Sequence["VJEPAProbe"], tokens: Tensor) -> list[Tensor]:
        """Call probes of one kind on the same tokens, each as if it were called alone.

        Args:
            probes: probes that differ in nothing but their weights and classes.
            tokens: `(batch, tokens, dim)`.

        Returns:
            Logits `(batch, num_classes)` of each probe. Attentive probes read the tokens once for
            all probes.

        Raises:
            ValueError: for tokens of another rank, or of another width than the probes'.

        Example:

        >>> import numpy as np
        >>> from keras_vjepa import VJEPAProbe
        >>> probes = [VJEPAProbe(classes, num_heads=2) for classes in (4, 6)]
        >>> for probe in probes:
        ...     probe.build((None, None, 8))
        >>> tokens = np.ones((3, 5, 8), "float32")
        >>> [tuple(logits.shape) for logits in VJEPAProbe.call_together(probes, tokens)]
        [(3, 4), (3, 6)]
        """
        first = probes[0]
        own_blocks = first.num_layers > 1 and first.self_attention == "tokens"
        if first.pooling != "attentive" or own_blocks:
            return [probe(tokens) for probe in probes]
        first._check_width(tokens)
        poolers = [probe.pooler for probe in probes]
        logits = []
        pooled = attend_together(poolers, ops.cast(tokens, first.compute_dtype))
        for probe, pooler, one in zip(probes, poolers, pooled, strict=True):
            logits.append(probe.linear(pooler.finish(pooler.project(one))))
        return logits

    def compute_output_shape(self, tokens_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (tokens_shape[0], self.num_classes)

    def compute_output_spec(self, tokens: keras.KerasTensor) -> keras.KerasTensor:
        # Logits have the dtype of the weights; Keras would announce that of the computation.
        shape = self.compute_output_shape(tokens.shape)
        return keras.KerasTensor(shape, dtype=self.variable_dtype)

    def save_to_preset(self, folder: Any) -> None:
        """Refuse to save a preset, since a preset needs a backbone.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_PRESET)

    @classmethod
    def from_preset(cls, preset: Any, **kwargs: Any) -> Self:
        """Refuse to load a preset, since a preset needs a backbone.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(_NO_PRESET)

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        """Refuse to add LoRA, since a probe has no pretrained weights to adapt.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A probe has no LoRA, which adapts weights that were pretrained: train it whole, and "
            "use `backbone.enable_lora` for what it reads."
        )

    def export_inputs(self) -> Any:
        raise ValueError(
            "`input_signature` must be given: a probe takes any number of tokens. Received: None"
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "pooling": self.pooling,
            "mlp_ratio": self.mlp_ratio,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "head_dim": self.head_dim,
            "self_attention": self.self_attention,
        }


def check_probe(
    num_heads: int | None,
    num_layers: int,
    mlp_ratio: float,
    layer_norm_epsilon: float,
    pooling: str,
    head_dim: int | None,
    self_attention: str,
) -> None:
    """Check those arguments of `VJEPAProbe` that do not depend on the features or classes.

    Raises:
        ValueError: for the first that is out of range.
    """
    check_whole(1, MOST_LONG, num_layers=num_layers)
    check_whole(1, MOST_LONG, optional=True, num_heads=num_heads, head_dim=head_dim)
    check_number("(0, 64]", mlp_ratio=mlp_ratio)
    check_number("(0, 1]", layer_norm_epsilon=layer_norm_epsilon)
    check_choice(("attentive", "average"), pooling=pooling)
    check_choice(("query", "tokens"), self_attention=self_attention)


def token_width(tokens_shape: Sequence[int | None]) -> int:
    """Read the width of tokens from their shape.

    Args:
        tokens_shape: `(batch, tokens, dim)`.

    Raises:
        ValueError: for another rank, and for a width that is not known.
    """
    if len(tokens_shape) != 3 or tokens_shape[-1] is None:
        raise ValueError(
            f"`tokens` must be (batch, tokens, dim). Received shape: {tuple(tokens_shape)}"
        )
    return tokens_shape[-1]
