"""Predict target features from context features and positions (§3.3, App. B).

Departures from the paper's text, as in the authors' code: there is one learnable mask token per
kind of mask (two with the paper's masks) rather than a single shared one, and it starts at zero;
context and target tokens are not sorted, and positions enter through the table only.

V-JEPA 2's predictor has rotary positions instead of the table (official-behaviour §12). Its authors
sort the tokens by position before the blocks and back after them. That is not done here, because
attention does not depend on the order.

V-JEPA 2.1's predictor reads several levels of the encoder, adds a vector for videos or images, and
also says what the features of the context tokens are (vjepa21 §2).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import arguments_of
from keras_vjepa.backend.keras_internals import ExportedAsAsked
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.token_ops import gelu
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.dense import dense, layer_norm
from keras_vjepa.layers.positions import position_table
from keras_vjepa.layers.rematerialization import Rematerializable
from keras_vjepa.layers.rotary import make_rotations
from keras_vjepa.layers.transformer import apply_blocks, transformer_blocks
from keras_vjepa.models.dimensions import MODALITY_STDDEV, predictor_weights
from keras_vjepa.models.exporting import Exportable
from keras_vjepa.models.lora import LowRankAdaptable
from keras_vjepa.models.token_numbers import check_token_numbers
from keras_vjepa.presets.preset import Preset
from keras_vjepa.types import Tensor

_WEIGHTS_FILE = "predictor.weights.h5"


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPAPredictor(
    ExportedAsAsked,
    Preset,
    LowRankAdaptable,
    StepFunctions,
    Rematerializable,
    TorchModule,
    Exportable,
):
    """Predicts the features of target tokens with a narrow transformer, P of V-JEPA (§3.3).

    Args:
        encoder_dim: width of the encoder's tokens.
        grid_shape: the clip's token grid `(time, row, column)`, or an image's `(row, column)`; it
            is the encoder's `position_axes`.
        hidden_dim: width of the predictor (Table 9: 384).
        num_layers: transformer blocks (Table 9: 12).
        num_heads: attention heads, the encoder's in the paper; must divide `hidden_dim`.
        num_mask_tokens: kinds of masks, each with a learnable token of its own.
        mlp_ratio: width of the MLP's hidden layer over `hidden_dim`.
        position_embedding: `"sincos"`, a table added to the tokens (V-JEPA); `"rotary"`, queries
            and keys rotated in every attention (V-JEPA 2); or `"rotary_pairs"`, the same with one
            angle for both channels of a pair (V-JEPA 2.1).
        uniform_power: whether time, row and column share the table's channels equally.
        layer_norm_epsilon: epsilon of every norm.
        remat: compute what happens inside a block again in the backward pass instead of keeping it
            (activation checkpointing): less memory, more time, the same numbers.
        output_dim: width of the predictions; `num_levels * encoder_dim` if None. For the pixel
            targets of Table 1, it is the number of values in a patch.
        position_reach: for rotary positions, the position of the last row and the last column,
            whatever their number (V-JEPA 2.1: 15); None counts rows and columns one by one.
        num_levels: levels of the encoder that a context token brings, side by side. If there are
            several, two layers with a GELU between them read them (V-JEPA 2.1: four, or one).
        predicts_context: whether a second output layer predicts the features of the context tokens
            too (V-JEPA 2.1).
        modalities: whether a learned vector is added to every token, one for videos and one for
            images (V-JEPA 2.1).

    Call arguments:
        context: `(batch, context, num_levels * encoder_dim)`, the encoder's output; or a dictionary
            of this and the next three by their names, which is how `fit` and `predict` pass several
            inputs.
        context_indices: int `(batch, context)`, position of each context token in the clip.
        target_indices: int `(batch, targets)`, the positions to predict.
        padding_mask: optional bool `(batch, context + targets)`; False entries are not attended to.
        mask_index: which kind of mask, and so which mask token; taken modulo `num_mask_tokens`.
            Pass it by keyword. The default is the first, 0; that of the transformers package for
            V-JEPA 2 is the second, 1.
        is_image: whether the tokens are of images; it matters with `modalities`. Tokens of an image
            are counted as those of a clip's first time step. Pass it by keyword.

    Returns:
        `(batch, targets, output_dim)`, in the order of `target_indices`; with `predicts_context`, a
        pair of this and `(batch, context, output_dim)`, in the order of `context_indices`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPAPredictor
    >>> predictor = VJEPAPredictor(24, (2, 2, 2), hidden_dim=12, num_layers=1, num_heads=2)
    >>> indices = np.array([[0, 1, 2]])
    >>> tuple(predictor(np.zeros((1, 3, 24), "float32"), indices, indices + 3).shape)
    (1, 3, 24)
    """

    config_file = "predictor.json"

    def __init__(
        self,
        encoder_dim: int,
        grid_shape: Sequence[int],
        hidden_dim: int = 384,
        num_layers: int = 12,
        num_heads: int = 12,
        num_mask_tokens: int = 2,
        mlp_ratio: float = 4.0,
        position_embedding: str = "sincos",
        uniform_power: bool = True,
        layer_norm_epsilon: float = 1e-6,
        output_dim: int | None = None,
        remat: bool = False,
        position_reach: float | None = None,
        num_levels: int = 1,
        predicts_context: bool = False,
        modalities: bool = False,
        **kwargs: Any,
    ) -> None:
        # At this point `locals()` holds all arguments by their names.
        predictor_weights(locals())
        super().__init__(**kwargs)
        self.encoder_dim = encoder_dim
        self.grid_shape = tuple(grid_shape)
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.num_mask_tokens = num_mask_tokens
        self.mlp_ratio = mlp_ratio
        self.position_embedding = position_embedding
        self.uniform_power = uniform_power
        self.layer_norm_epsilon = layer_norm_epsilon
        self.remat = remat
        self.output_dim = num_levels * encoder_dim if output_dim is None else output_dim
        self.position_reach = position_reach
        self.num_levels = num_levels
        self.predicts_context = predicts_context
        self.modalities = modalities
        # The weights are made in `build`, because only there does Keras give every variable a path
        # of its own.
        self.build((None, None, num_levels * encoder_dim))

    def build(self, context_shape: Sequence[int | None]) -> None:
        if self.built:
            return
        policy, tokens_shape = self.dtype_policy, (None, None, self.hidden_dim)
        if self.num_levels > 1:
            self.level_projection = dense(self.encoder_dim, "level_projection", policy)
            self.level_projection.build(context_shape)
        self.input_projection = dense(self.hidden_dim, "input_projection", policy)
        self.input_projection.build((None, None, self.encoder_dim))
        self.mask_tokens = [
            self.add_weight(
                shape=(1, 1, self.hidden_dim), initializer="zeros", name=f"mask_token_{i}"
            )
            for i in range(self.num_mask_tokens)
        ]
        if self.position_embedding == "sincos":
            table = position_table(self.hidden_dim, self.grid_shape, self.uniform_power)
            self.position_table = self.add_weight(
                shape=table.shape, initializer="zeros", trainable=False, name="position_table"
            )
            self.position_table.assign(table)
        self.blocks = transformer_blocks(
            self.num_layers,
            self.hidden_dim,
            self.num_heads,
            int(self.hidden_dim * self.mlp_ratio),
            self.layer_norm_epsilon,
            policy,
        )
        self.norm = layer_norm(self.layer_norm_epsilon, "norm", policy)
        self.norm.build(tokens_shape)
        self.output_projection = dense(self.output_dim, "output_projection", policy)
        self.output_projection.build(tokens_shape)
        if self.predicts_context:
            self.context_projection = dense(self.output_dim, "context_projection", policy)
            self.context_projection.build(tokens_shape)
        if self.modalities:
            self.video_vector, self.image_vector = (
                self.add_weight(
                    shape=(1, 1, self.hidden_dim),
                    initializer=keras.initializers.RandomNormal(stddev=MODALITY_STDDEV),
                    name=name,
                )
                for name in ("video_vector", "image_vector")
            )
        self.restore_layer_states()

    @classmethod
    def number_of_weights(cls, **arguments: Any) -> int:
        """Count the numbers in the weights of a predictor without making it; check its arguments.

        Args:
            arguments: arguments of the constructor; those left out have its defaults.

        Raises:
            ValueError: for unknown or missing names, and for values that the constructor refuses.
        """
        return predictor_weights(arguments_of(cls, arguments))

    @classmethod
    def weights_asked_for(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Count the weights that the file of a preset must hold, as `VJEPABackbone` does."""
        return {_WEIGHTS_FILE: cls.number_of_weights(**config)}

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of a clip."""
        return math.prod(self.grid_shape)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as Keras does, once the numbers of tokens are known to be in a clip."""
        names = ("context", "context_indices", "target_indices")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        if isinstance(given.get("context"), dict):
            given = given["context"]
        check_token_numbers(self.num_tokens, {name: given.get(name) for name in names[1:]})
        return super().__call__(*args, **kwargs)

    def call(
        self,
        context: Tensor | dict[str, Tensor],
        context_indices: Tensor | None = None,
        target_indices: Tensor | None = None,
        padding_mask: Tensor | None = None,
        mask_index: int = 0,
        is_image: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if isinstance(context, dict):
            return self.call(**_by_name(context), mask_index=mask_index, is_image=is_image)
        if context_indices is None or target_indices is None:
            raise ValueError(
                "`context_indices` and `target_indices` must be given, by themselves or in a "
                "dictionary with `context`. Received: None"
            )
        if self.num_levels > 1:
            context = gelu(self.level_projection(context))
        x = self.input_projection(context)
        mask_token = ops.cast(self.mask_tokens[mask_index % self.num_mask_tokens], x.dtype)
        targets = ops.broadcast_to(mask_token, (*ops.shape(target_indices), self.hidden_dim))
        x = ops.concatenate([x, targets], axis=1)
        indices = ops.concatenate([context_indices, target_indices], axis=1)
        if self.modalities:
            vector = self.image_vector if is_image else self.video_vector
            x = ops.add(x, ops.cast(vector, x.dtype))
        rotations = None
        if self.position_embedding == "sincos":
            table = ops.cast(self.position_table, x.dtype)
            x = ops.add(x, ops.take(table, indices, axis=0))
        else:
            rotations = make_rotations(
                indices,
                self.grid_shape,
                self.hidden_dim // self.num_heads,
                self.position_embedding == "rotary_pairs",
                self.position_reach,
            )
        x = apply_blocks(self.blocks, x, padding_mask, rotations, self.remat)
        num_context = ops.shape(context_indices)[1]
        predictions = self.output_projection(self.norm(x[:, num_context:]))
        if not self.predicts_context:
            return predictions
        return predictions, self.context_projection(self.norm(x[:, :num_context]))

    def compute_output_shape(
        self,
        context_shape: Any,
        context_indices_shape: Sequence[int | None] | None = None,
        target_indices_shape: Sequence[int | None] | None = None,
        padding_mask_shape: Sequence[int | None] | None = None,
    ) -> Any:
        if isinstance(context_shape, dict):
            shapes = _by_name(context_shape)
            context_shape, target_indices_shape = shapes["context"], shapes["target_indices"]
        # `summary` passes only the shape that `build` was given, which is the context's.
        targets = None if target_indices_shape is None else target_indices_shape[1]
        shape = (context_shape[0], targets, self.output_dim)
        return (shape, (*context_shape[:2], self.output_dim)) if self.predicts_context else shape

    def export_inputs(self) -> Any:
        raise ValueError(
            "`input_signature` must be given: a predictor takes any number of `context` and "
            "`target_indices`. Received: None"
        )

    def preset_files(self) -> dict[str, Any]:
        return {self.config_file: self, _WEIGHTS_FILE: self}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "encoder_dim": self.encoder_dim,
            "grid_shape": self.grid_shape,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_mask_tokens": self.num_mask_tokens,
            "mlp_ratio": self.mlp_ratio,
            "position_embedding": self.position_embedding,
            "uniform_power": self.uniform_power,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "remat": self.remat,
            "output_dim": self.output_dim,
            "position_reach": self.position_reach,
            "num_levels": self.num_levels,
            "predicts_context": self.predicts_context,
            "modalities": self.modalities,
        }


_INPUTS = ("context", "context_indices", "target_indices", "padding_mask")


def _by_name(inputs: dict[str, Any]) -> dict[str, Any]:
    """Check the names of inputs that came in one dictionary, and return them."""
    if not {*_INPUTS[:3]} <= {*inputs} <= {*_INPUTS}:
        raise ValueError(
            f"The inputs of a predictor must be `context`, `context_indices`, `target_indices` "
            f"and perhaps `padding_mask`. Received: {', '.join(map(str, inputs))}"
        )
    return inputs
