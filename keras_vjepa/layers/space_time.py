"""Convolve clips and attend within them, the layers of the decoder's 3-D U-Net (App. F).

The blocks are those of guided-diffusion's U-Net (`spec.md` §3.2), made 3-D: space is halved, time
stays. A clip is `(batch, time, height, width, channels)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import MOST_LONG, check_choice, check_flag, check_number, check_whole
from keras_vjepa.backend.part_calls import call_part, part_of_a_block
from keras_vjepa.backend.token_ops import convolve_space_time, normalize_groups
from keras_vjepa.layers.dense import TokenDense
from keras_vjepa.types import Tensor

SAMPLINGS = ("same", "down", "up")
_NORM_EPSILON = 1e-5


def group_norm(channels: int | None, groups: int, name: str, policy: Any) -> keras.layers.Layer:
    """Make a norm over groups of channels, over as many of the `groups` as divide the channels."""
    if channels is None:
        raise ValueError("The number of channels must be known. Received: None")
    return ClipNorm(math.gcd(groups, channels), epsilon=_NORM_EPSILON, name=name, dtype=policy)


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class ClipNorm(keras.layers.GroupNormalization):
    """Normalises groups of the last axis' channels as `keras.layers.GroupNormalization` does.

    What is given is `(batch, ..., channels)`; the variables are the base class's.
    """

    def call(self, inputs: Tensor) -> Tensor:
        return normalize_groups(inputs, self.gamma, self.beta, self.groups, self.epsilon)


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class SpaceTimeConvolution(keras.layers.Layer):
    """Convolves clips with kernels of 3 x 3 x 3, or with one over space and then one over time.

    Args:
        filters: number of channels that come out.
        factorized: whether the kernel is 1 x 3 x 3 and then 3 x 1 x 1. Time is folded into the
            batch for the first, which 3-D convolutions of processors are much slower than.
        zeros: whether the layer begins as zero.

    Call arguments:
        clips: `(batch, time, height, width, channels)`.

    Returns:
        `(batch, time, height, width, filters)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers.space_time import SpaceTimeConvolution
    >>> tuple(SpaceTimeConvolution(5, factorized=True)(np.ones((1, 2, 4, 4, 3), "float32")).shape)
    (1, 2, 4, 4, 5)
    """

    def __init__(
        self, filters: int, factorized: bool = False, zeros: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_whole(1, MOST_LONG, filters=filters)
        check_flag(factorized=factorized, zeros=zeros)
        self.filters = filters
        self.factorized = factorized
        self.zeros = zeros

    @staticmethod
    def number_of_weights(channels: int, filters: int, factorized: bool) -> int:
        """Count the numbers in the weights of such a layer."""
        if not factorized:
            return (27 * channels + 1) * filters
        return (9 * channels + 1) * filters + (3 * filters + 1) * filters

    def build(self, clips_shape: Sequence[int | None]) -> None:
        channels, last = clips_shape[-1], "zeros" if self.zeros else "glorot_uniform"
        policy = self.dtype_policy
        if self.factorized:
            self.space = keras.layers.Conv2D(
                self.filters, 3, padding="same", name="space", dtype=policy
            )
            self.space.build((None, None, None, channels))
            # The three taps over time are kept as one linear map of three neighbouring frames, and
            # applied as a convolution of 3 x 1 with a frame's pixels in a row.
            self.time = keras.layers.Dense(
                self.filters, kernel_initializer=last, name="time", dtype=policy
            )
            self.time.build((None, 3 * self.filters))
        else:
            self.kernel = keras.layers.Conv3D(
                self.filters, 3, padding="same", kernel_initializer=last, name="kernel",
                dtype=policy,
            )  # fmt: skip
            self.kernel.build((None, None, None, None, channels))
        self.built = True

    def call(self, clips: Tensor) -> Tensor:
        if not self.factorized:
            return self.kernel(clips)
        space, time = self.space, self.time
        return convolve_space_time(clips, (space.kernel, space.bias), (time.kernel, time.bias))

    def compute_output_shape(self, clips_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (*clips_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "factorized": self.factorized,
            "zeros": self.zeros,
        }


@keras.saving.register_keras_serializable("keras_vjepa")
class ResidualClipBlock(keras.layers.Layer):
    """Adds to a clip what two convolutions make of it, told by a vector how to scale and shift.

    Args:
        filters: number of channels that come out.
        sampling: `"same"`, or `"down"` and `"up"` to halve and double height and width.
        factorized: as in `SpaceTimeConvolution`.
        groups: the most groups of channels that a norm has.
        dropout: share of the values that training leaves out before the last convolution.

    Call arguments:
        clips: `(batch, time, height, width, channels)`.
        condition: `(batch, dim)`, the vector.
        training: whether `dropout` is applied.

    Returns:
        `(batch, time, height', width', filters)`.
    """

    def __init__(
        self,
        filters: int,
        sampling: str = "same",
        factorized: bool = False,
        groups: int = 32,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_whole(1, MOST_LONG, filters=filters, groups=groups)
        check_choice(SAMPLINGS, sampling=sampling)
        check_flag(factorized=factorized)
        check_number("[0, 1)", dropout=dropout)
        self.filters = filters
        self.sampling = sampling
        self.factorized = factorized
        self.groups = groups
        self.dropout = dropout

    @staticmethod
    def number_of_weights(channels: int, filters: int, dim: int, factorized: bool) -> int:
        """Count the numbers in the weights of such a block; `dim` is that of the condition."""
        convolve = SpaceTimeConvolution.number_of_weights
        inner = convolve(channels, filters, factorized) + convolve(filters, filters, factorized)
        skip = 0 if channels == filters else (channels + 1) * filters
        return 2 * channels + 2 * filters + (dim + 1) * 2 * filters + inner + skip

    def build(
        self, clips_shape: Sequence[int | None], condition_shape: Sequence[int | None]
    ) -> None:
        channels, policy = clips_shape[-1], self.dtype_policy
        inner = (*clips_shape[:-1], self.filters)
        self.norm = group_norm(channels, self.groups, "norm", policy)
        self.norm.build(clips_shape)
        self.first = SpaceTimeConvolution(self.filters, self.factorized, name="first", dtype=policy)
        self.first.build(clips_shape)
        self.scale_and_shift = TokenDense(2 * self.filters, name="scale_and_shift", dtype=policy)
        self.scale_and_shift.build(condition_shape)
        self.second_norm = group_norm(self.filters, self.groups, "second_norm", policy)
        self.second_norm.build(inner)
        self.drop = keras.layers.Dropout(self.dropout, name="drop", dtype=policy)
        self.second = SpaceTimeConvolution(
            self.filters, self.factorized, zeros=True, name="second", dtype=policy
        )
        self.second.build(inner)
        self.skip = None
        if channels != self.filters:
            self.skip = TokenDense(self.filters, name="skip", dtype=policy)
            self.skip.build(clips_shape)
        self.built = True

    def call(self, clips: Tensor, condition: Tensor, training: bool = False) -> Tensor:
        x = self._resized(ops.silu(call_part(self.norm, clips)))
        x = call_part(self.first, x)
        vector = call_part(self.scale_and_shift, ops.silu(condition))
        vector = ops.reshape(vector, (-1, 1, 1, 1, 2 * self.filters))
        scale, shift = vector[..., : self.filters], vector[..., self.filters :]
        x = ops.silu(call_part(self.second_norm, x) * (1 + scale) + shift)
        x = call_part(self.second, self.drop(x, training=training) if self.dropout else x)
        kept = self._resized(clips)
        return x + (kept if self.skip is None else call_part(self.skip, kept))

    def _resized(self, clips: Tensor) -> Tensor:
        if self.sampling == "same":
            return clips
        _, time, height, width, channels = clips.shape
        if self.sampling == "down":
            # Additions of slices are several times as fast as a mean over two axes in the middle.
            x = ops.reshape(clips, (-1, time, height // 2, 2, width, channels))
            x = ops.reshape(
                x[:, :, :, 0] + x[:, :, :, 1], (-1, time, height // 2, width // 2, 2, channels)
            )
            return (x[:, :, :, :, 0] + x[:, :, :, :, 1]) / 4
        x = ops.reshape(clips, (-1, time, height, 1, width, 1, channels))
        x = ops.broadcast_to(x, (ops.shape(clips)[0], time, height, 2, width, 2, channels))
        return ops.reshape(x, (-1, time, 2 * height, 2 * width, channels))

    def compute_output_shape(
        self, clips_shape: Sequence[int | None], condition_shape: Sequence[int | None]
    ) -> tuple[int | None, ...]:
        sides = [
            side and {"same": side, "down": side // 2, "up": 2 * side}[self.sampling]
            for side in clips_shape[2:4]
        ]
        return (*clips_shape[:2], *sides, self.filters)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "sampling": self.sampling,
            "factorized": self.factorized,
            "groups": self.groups,
            "dropout": self.dropout,
        }


@part_of_a_block
@keras.saving.register_keras_serializable("keras_vjepa")
class ClipAttention(keras.layers.Layer):
    """Lets all places of a clip attend to each other and, if there are any, to further tokens.

    Args:
        head_dim: width of a head; must divide the channels, else there is one head.
        groups: the most groups of channels that the norm has.

    Call arguments:
        clips: `(batch, time, height, width, channels)`.
        tokens: None, or `(batch, tokens, dim)`, which are attended to beside the clip itself.

    Returns:
        The clip with what was attended to added.
    """

    def __init__(self, head_dim: int = 64, groups: int = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_whole(1, MOST_LONG, head_dim=head_dim, groups=groups)
        self.head_dim = head_dim
        self.groups = groups

    @staticmethod
    def number_of_weights(channels: int, dim: int | None) -> int:
        """Count the numbers in the weights of such a layer; `dim` is that of the tokens, if any."""
        of_tokens = 0 if dim is None else (dim + 1) * 2 * channels
        return 2 * channels + (channels + 1) * 4 * channels + of_tokens

    def build(
        self,
        clips_shape: Sequence[int | None],
        tokens_shape: Sequence[int | None] | None = None,
    ) -> None:
        channels, policy = int(clips_shape[-1] or 0), self.dtype_policy
        self.norm = group_norm(clips_shape[-1], self.groups, "norm", policy)
        self.norm.build(clips_shape)
        self.projections = TokenDense(3 * channels, name="projections", dtype=policy)
        self.projections.build((None, None, channels))
        self.of_tokens = None
        if tokens_shape is not None:
            self.of_tokens = TokenDense(2 * channels, name="of_tokens", dtype=policy)
            self.of_tokens.build(tokens_shape)
        self.output_projection = TokenDense(
            channels, kernel_initializer="zeros", name="output_projection", dtype=policy
        )
        self.output_projection.build((None, None, channels))
        self.built = True

    def call(self, clips: Tensor, tokens: Tensor | None = None) -> Tensor:
        _, time, height, width, channels = clips.shape
        x = ops.reshape(call_part(self.norm, clips), (-1, time * height * width, channels))
        query, key, value = ops.split(call_part(self.projections, x), 3, axis=-1)
        if tokens is not None and self.of_tokens is not None:
            more_keys, more_values = ops.split(call_part(self.of_tokens, tokens), 2, axis=-1)
            key = ops.concatenate([key, more_keys], axis=1)
            value = ops.concatenate([value, more_values], axis=1)
        heads = 1 if channels % self.head_dim else channels // self.head_dim
        split = (-1, heads, channels // heads)
        query, key, value = (
            ops.reshape(one, (-1, one.shape[1], *split[1:])) for one in (query, key, value)
        )
        found = ops.dot_product_attention(query, key, value)
        found = ops.reshape(found, (-1, time * height * width, channels))
        found = call_part(self.output_projection, found)
        return clips + ops.reshape(found, (-1, time, height, width, channels))

    def compute_output_shape(
        self,
        clips_shape: Sequence[int | None],
        tokens_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        return tuple(clips_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "head_dim": self.head_dim, "groups": self.groups}
