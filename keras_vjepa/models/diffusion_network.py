"""Predict the noise in a clip by a 3-D U-Net that is told of features (App. F).

The paper's numbers are those of guided-diffusion's model for 64 pixels, made 3-D (`spec.md` §3.2):
width 192, 3 residual blocks on each of 4 levels of 1, 2, 3 and 4 times the width, attention at 32,
16 and 8 pixels in heads of 64. The mean of the features, through a linear layer, is added to the
embedding of the timestep, as RCDM does with its one vector. The paper does not say how many tokens
become one condition; `condition` has further ways, which keep where each token is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import (
    MOST_LONG,
    arguments_of,
    check_choice,
    check_flag,
    check_number,
    check_whole,
    shown,
)
from keras_vjepa.backend.part_calls import call_part
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.layers.space_time import (
    ClipAttention,
    ResidualClipBlock,
    SpaceTimeConvolution,
    group_norm,
)
from keras_vjepa.layers.token_reader import TokenReader
from keras_vjepa.models.diffusion import timestep_embedding
from keras_vjepa.types import Tensor

CONDITIONS = ("pooled", "tokens", "grid", "attended")
# Those that turn tokens into channels of the pixels of their patches.
_LAID_OUT = ("grid", "attended")
# Numbers for the origin of a clip's features: none, predicted, or those of the target encoder.
KINDS = ("none", "predicted", "target")


@dataclass(frozen=True)
class Stage:
    """Describes one residual block of the U-Net.

    Attributes:
        channels: number of channels that come in, those of a kept output included.
        filters: number of channels that come out.
        sampling: as in `ResidualClipBlock`.
        attends: whether attention follows.
        part: `"down"`, `"middle"` or `"up"`.
        joins: whether the output of a block on the way down is concatenated before it.
    """

    channels: int
    filters: int
    sampling: str
    attends: bool
    part: str
    joins: bool = False


def stages(
    width: int, multipliers: Sequence[int], num_blocks: int, attention_at: Sequence[int], side: int
) -> list[Stage]:
    """List the blocks of a U-Net in the order in which they are called.

    Args:
        width, multipliers, num_blocks, attention_at: as in `DiffusionNetwork`.
        side: height of the clips.
    """
    found, kept, channels = [], [width], width
    for level, times in enumerate(multipliers):
        for _ in range(num_blocks):
            found.append(Stage(channels, times * width, "same", side in attention_at, "down"))
            channels = times * width
            kept.append(channels)
        if level < len(multipliers) - 1:
            found.append(Stage(channels, channels, "down", False, "down"))
            kept.append(channels)
            side //= 2
    found += [Stage(channels, channels, "same", attends, "middle") for attends in (True, False)]
    for level, times in reversed([*enumerate(multipliers)]):
        for _ in range(num_blocks + 1):
            joined, attends = channels + kept.pop(), side in attention_at
            found.append(Stage(joined, times * width, "same", attends, "up", joins=True))
            channels = times * width
        if level:
            found.append(Stage(channels, channels, "up", False, "up"))
            side *= 2
    return found


@keras.saving.register_keras_serializable("keras_vjepa")
class DiffusionNetwork(KeepsLayerStates, StepFunctions, TorchModule, keras.Model):
    """Predicts the noise in clips, given the timestep and features of what they show (App. F).

    Args:
        clip_shape: frames, height and width of the clips; every level but the last halves height
            and width.
        feature_dim: width of the features.
        grid_shape: tokens of the features by time, row and column.
        width: channels of the first level (paper: 192).
        multipliers: channels of each level, as multiples of `width` (paper: 1, 2, 3, 4).
        num_blocks: residual blocks of a level (paper: 3).
        attention_at: heights of clips at which there is attention; there always is in the middle.
        head_dim: width of an attention head; one head where it does not divide the channels.
        condition: how the features come in, beside their mean: `"pooled"` for not at all;
            `"tokens"`: attention attends to them, with learnt positions; `"grid"`: each token is
            turned into `grid_channels` further channels of the pixels of its patch; `"attended"`:
            the same, after the tokens have attended to each other in two blocks.
        grid_channels: see `condition`; these are channels of the noisy clip.
        factorized: as in `SpaceTimeConvolution`; the paper's kernels are 3 x 3 x 3.
        groups: the most groups of channels of a norm.
        dropout: share of the values that training leaves out in each block.

    Call arguments:
        inputs: a dictionary of `clips`, float `(batch, frames, height, width, 3)`; `timesteps`,
            `(batch,)`; `features`, `(batch, tokens, feature_dim)`; `kinds`, int `(batch,)`: what
            the features are, numbers of `KINDS`. Of kind 0 the features are not looked at.

    Returns:
        The noise, float32, in the shape of `clips`.

    Raises:
        ValueError: for arguments out of range, and sizes that do not fit.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models.diffusion_network import DiffusionNetwork
    >>> network = DiffusionNetwork((2, 8, 8), 6, (2, 2, 2), 8, (1, 2), 1, (), condition="grid")
    >>> inputs = {"clips": np.zeros((1, 2, 8, 8, 3), "float32"), "timesteps": np.array([7])}
    >>> inputs |= {"features": np.zeros((1, 8, 6), "float32"), "kinds": np.array([1])}
    >>> tuple(network(inputs).shape)
    (1, 2, 8, 8, 3)
    """

    def __init__(
        self,
        clip_shape: Sequence[int],
        feature_dim: int,
        grid_shape: Sequence[int],
        width: int = 192,
        multipliers: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attention_at: Sequence[int] = (32, 16, 8),
        head_dim: int = 64,
        condition: str = "pooled",
        grid_channels: int = 4,
        factorized: bool = False,
        groups: int = 32,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_network(
            width, multipliers, num_blocks, attention_at, head_dim, condition, grid_channels,
            factorized, groups, dropout,
        )  # fmt: skip
        _check_sizes(clip_shape, feature_dim, grid_shape, multipliers, condition)
        self.clip_shape = tuple(clip_shape)
        self.feature_dim = feature_dim
        self.grid_shape = tuple(grid_shape)
        self.width = width
        self.multipliers = tuple(multipliers)
        self.num_blocks = num_blocks
        self.attention_at = tuple(attention_at)
        self.head_dim = head_dim
        self.condition = condition
        self.grid_channels = grid_channels
        self.factorized = factorized
        self.groups = groups
        self.dropout = dropout
        self.build()

    @classmethod
    def number_of_weights(cls, **arguments: Any) -> int:
        """Count the numbers in the weights of a network without making it; check its arguments.

        Args:
            arguments: arguments of the constructor; those left out have its defaults.

        Raises:
            ValueError: for unknown or missing names, and for values that the constructor refuses.
        """
        own = arguments_of(cls, arguments)
        clip_shape, dim, grid_shape = (
            own.pop(name) for name in ("clip_shape", "feature_dim", "grid_shape")
        )
        check_network(**own)
        _check_sizes(clip_shape, dim, grid_shape, own["multipliers"], own["condition"])
        steps, rows, columns = grid_shape
        width, factorized, condition = own["width"], own["factorized"], own["condition"]
        convolve, embedded = SpaceTimeConvolution.number_of_weights, 4 * width
        depth = own["grid_channels"] if condition in _LAID_OUT else 0
        patch = clip_shape[0] * clip_shape[1] * clip_shape[2] // (steps * rows * columns)
        total = (width + 1) * embedded + (embedded + 1) * embedded + (dim + 1) * embedded
        total += len(KINDS) * embedded + (dim + 1) * patch * depth
        total += steps * rows * columns * dim if condition == "tokens" else 0
        if condition == "attended":
            total += TokenReader.number_of_weights(steps * rows * columns, dim)
        last = width * own["multipliers"][0]
        total += convolve(3 + depth, width, factorized) + 2 * last
        for one in stages(
            width, own["multipliers"], own["num_blocks"], own["attention_at"], clip_shape[1]
        ):
            total += ResidualClipBlock.number_of_weights(
                one.channels, one.filters, embedded, factorized
            )
            if one.attends:
                total += ClipAttention.number_of_weights(
                    one.filters, dim if condition == "tokens" else None
                )
        return total + convolve(last, 3, factorized)

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        policy, embedded = self.dtype_policy, 4 * self.width
        frames, height, width = self.clip_shape

        def made_dense(filters: int, channels: int, name: str) -> keras.layers.Dense:
            layer = keras.layers.Dense(filters, name=name, dtype=policy)
            layer.build((None, channels))
            return layer

        self.time_first = made_dense(embedded, self.width, "time_first")
        self.time_second = made_dense(embedded, embedded, "time_second")
        self.of_features = made_dense(embedded, self.feature_dim, "of_features")
        self.of_kinds = keras.layers.Embedding(len(KINDS), embedded, name="of_kinds", dtype=policy)
        self.of_kinds.build((None,))
        channels = 3
        if self.condition in _LAID_OUT:
            pixels = frames * height * width // self.num_tokens
            self.laid_out = made_dense(pixels * self.grid_channels, self.feature_dim, "laid_out")
            channels += self.grid_channels
        if self.condition == "tokens":
            self.positions = self.add_weight(
                shape=(1, self.num_tokens, self.feature_dim), initializer="zeros", name="positions"
            )
        if self.condition == "attended":
            self.reader = TokenReader(head_dim=self.head_dim, name="reader", dtype=policy)
            self.reader.build((None, self.num_tokens, self.feature_dim))
        self.first = SpaceTimeConvolution(self.width, self.factorized, name="first", dtype=policy)
        self.first.build((None, frames, height, width, channels))
        self._build_stages()
        shape = (None, frames, height, width, self.width * self.multipliers[0])
        self.norm = group_norm(shape[-1], self.groups, "norm", policy)
        self.norm.build(shape)
        self.last = SpaceTimeConvolution(3, self.factorized, zeros=True, name="last", dtype=policy)
        self.last.build(shape)
        self.built = True
        self.restore_layer_states()

    def _build_stages(self) -> None:
        frames, *sides = self.clip_shape
        tokens = (None, None, self.feature_dim) if self.condition == "tokens" else None
        self.blocks, self.attentions = [], []
        for number, one in enumerate(self._stages()):
            block = ResidualClipBlock(
                one.filters, one.sampling, self.factorized, self.groups, self.dropout,
                name=f"block_{number}", dtype=self.dtype_policy,
            )  # fmt: skip
            block.build((None, frames, *sides, one.channels), (None, 4 * self.width))
            self.blocks.append(block)
            change = {"same": (1, 1), "down": (1, 2), "up": (2, 1)}[one.sampling]
            sides = [side * change[0] // change[1] for side in sides]
            if one.attends:
                attention = ClipAttention(
                    self.head_dim, self.groups, name=f"attention_{number}", dtype=self.dtype_policy
                )
                attention.build((None, frames, *sides, one.filters), tokens)
                self.attentions.append(attention)

    def _stages(self) -> list[Stage]:
        return stages(
            self.width, self.multipliers, self.num_blocks, self.attention_at, self.clip_shape[1]
        )

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of a clip's features."""
        steps, rows, columns = self.grid_shape
        return steps * rows * columns

    def call(self, inputs: Mapping[str, Tensor], training: bool = False) -> Tensor:
        clips = ops.cast(inputs["clips"], self.compute_dtype)
        kinds = ops.cast(inputs["kinds"], "int32")
        told = ops.cast(ops.reshape(kinds > 0, (-1, 1, 1)), self.compute_dtype)
        features = ops.cast(inputs["features"], self.compute_dtype) * told
        if self.condition == "attended":
            features = self.reader(features)
        vector = ops.cast(timestep_embedding(inputs["timesteps"], self.width), self.compute_dtype)
        vector = self.time_second(ops.silu(self.time_first(vector)))
        vector = vector + self.of_kinds(kinds) + self.of_features(ops.mean(features, axis=1))
        tokens = None
        if self.condition == "tokens":
            tokens = (features + ops.cast(self.positions, self.compute_dtype)) * told
        if self.condition in _LAID_OUT:
            clips = ops.concatenate([clips, self._laid_out(features)], axis=-1)
        x = call_part(self.first, clips)
        kept, attentions = [x], iter(self.attentions)
        for one, block in zip(self._stages(), self.blocks, strict=True):
            if one.joins:
                x = ops.concatenate([x, kept.pop()], axis=-1)
            x = block(x, vector, training=training)
            if one.attends:
                x = call_part(next(attentions), x, tokens)
            if one.part == "down":
                kept.append(x)
        return ops.cast(call_part(self.last, ops.silu(call_part(self.norm, x))), "float32")

    def _laid_out(self, features: Tensor) -> Tensor:
        """Turn each token into channels of the pixels of its patch."""
        (frames, height, width), (steps, rows, columns) = self.clip_shape, self.grid_shape
        sides = (frames // steps, height // rows, width // columns)
        x = self.laid_out(features)
        x = ops.reshape(x, (-1, steps, rows, columns, *sides, self.grid_channels))
        x = ops.transpose(x, (0, 1, 4, 2, 5, 3, 6, 7))
        return ops.reshape(x, (-1, frames, height, width, self.grid_channels))

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return tuple(input_shape["clips"])

    def compute_output_spec(self, inputs: Any, training: bool = False) -> keras.KerasTensor:
        return keras.KerasTensor(inputs["clips"].shape, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "clip_shape": self.clip_shape,
            "feature_dim": self.feature_dim,
            "grid_shape": self.grid_shape,
            "width": self.width,
            "multipliers": self.multipliers,
            "num_blocks": self.num_blocks,
            "attention_at": self.attention_at,
            "head_dim": self.head_dim,
            "condition": self.condition,
            "grid_channels": self.grid_channels,
            "factorized": self.factorized,
            "groups": self.groups,
            "dropout": self.dropout,
        }


def check_network(
    width: int,
    multipliers: Sequence[int],
    num_blocks: int,
    attention_at: Sequence[int],
    head_dim: int,
    condition: str,
    grid_channels: int,
    factorized: bool,
    groups: int,
    dropout: float,
) -> None:
    """Check those arguments of `DiffusionNetwork` that do not depend on clips and features.

    Raises:
        ValueError: for the first that is out of range.
    """
    check_whole(1, MOST_LONG, width=width, num_blocks=num_blocks, head_dim=head_dim)
    check_whole(1, MOST_LONG, grid_channels=grid_channels, groups=groups)
    if not isinstance(multipliers, list | tuple) or not multipliers:
        raise ValueError(f"`multipliers` must name a level. Received: {shown(multipliers)}")
    for one in multipliers:
        check_whole(1, MOST_LONG, multipliers=one)
    if not isinstance(attention_at, list | tuple):
        raise ValueError(
            f"`attention_at` must be a list of heights. Received: {shown(attention_at)}"
        )
    for one in attention_at:
        check_whole(1, MOST_LONG, attention_at=one)
    check_choice(CONDITIONS, condition=condition)
    check_flag(factorized=factorized)
    check_number("[0, 1)", dropout=dropout)


def _check_sizes(
    clip_shape: Sequence[int],
    feature_dim: int,
    grid_shape: Sequence[int],
    multipliers: Sequence[int],
    condition: str,
) -> None:
    check_whole(1, MOST_LONG, feature_dim=feature_dim)
    for name, sizes in (("clip_shape", clip_shape), ("grid_shape", grid_shape)):
        if not isinstance(sizes, list | tuple) or len(sizes) != 3:
            raise ValueError(f"`{name}` must be three numbers. Received: {shown(sizes)}")
        for one in sizes:
            given: dict[str, Any] = {name: one}
            check_whole(1, MOST_LONG, **given)
    halved = 2 ** (len(multipliers) - 1)
    if clip_shape[1] % halved or clip_shape[2] % halved:
        raise ValueError(
            f"`clip_shape` must have sides that {halved} divides, for {len(multipliers)} levels. "
            f"Received: {shown(clip_shape)}"
        )
    if condition in _LAID_OUT and any(a % b for a, b in zip(clip_shape, grid_shape, strict=True)):
        raise ValueError(
            f"`clip_shape` must be a multiple of `grid_shape`={tuple(grid_shape)} for a condition "
            f"laid out on a grid. Received: {shown(clip_shape)}"
        )
