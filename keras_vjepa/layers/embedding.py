"""Turn videos into tokens, and pick tokens by their numbers (§3.3, App. B).

Shapes: videos are (batch, frames, height, width, channels). Their token grid is (frames / tubelet,
height / patch, width / patch), and it is flattened by time, then row, then column.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import check_flag, check_whole
from keras_vjepa.backend.device import on_each_device
from keras_vjepa.backend.token_ops import linear
from keras_vjepa.layers.dense import weight_initializer
from keras_vjepa.layers.rematerialization import Rematerializable
from keras_vjepa.types import Tensor

_GRID_AXES = ("num_frames", "height", "width")


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens of every sample by their numbers.

    Args:
        tokens: `(batch, tokens, dim)`.
        indices: int `(batch, picked)`, each in `[0, tokens)`.

    Returns:
        `(batch, picked, dim)`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import gather_tokens
    >>> tokens = np.arange(6, dtype="float32").reshape(1, 3, 2)
    >>> np.asarray(gather_tokens(tokens, np.array([[2, 0]]))).tolist()
    [[[4.0, 5.0], [0.0, 1.0]]]
    """
    return on_each_device(_gather_rows, tokens, indices)


def _gather_rows(tokens: Tensor, indices: Tensor) -> Tensor:
    batch, num_tokens, dim = ops.shape(tokens)
    indices = ops.cast(indices, "int32")
    # One flat gather of whole rows: every backend carries it out by copying rows, whereas
    # TensorFlow and torch look up every single number when they gather along an axis.
    offsets = ops.expand_dims(ops.arange(0, batch, dtype="int32") * num_tokens, 1)
    flat = ops.reshape(tokens, (batch * num_tokens, dim))
    picked = ops.take(flat, ops.reshape(indices + offsets, (-1,)), axis=0)
    return ops.reshape(picked, (batch, ops.shape(indices)[1], dim))


@keras.saving.register_keras_serializable("keras_vjepa")
class TubeletEmbedding(Rematerializable):
    """Embeds non-overlapping space-time patches, the tubelets, linearly (§3.3, App. B).

    The layer computes the same map as a 3-D convolution whose kernel is as large as its stride, but
    as one matrix product. With `token_indices` it embeds only the patches asked for.

    Args:
        hidden_dim: width of a token.
        patch_size: height and width of a patch, in pixels.
        tubelet_size: frames in a patch; 1 for image models.
        use_bias: whether a bias is added, as in all models but CLIP's.

    Call arguments:
        videos: `(batch, frames, height, width, channels)`.
        token_indices: optional int `(batch, picked)`.

    Returns:
        `(batch, tokens, hidden_dim)`, or `(batch, picked, hidden_dim)`.

    Raises:
        ValueError: if frames, height or width are not multiples of the patch.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import TubeletEmbedding
    >>> tuple(TubeletEmbedding(hidden_dim=12)(np.zeros((1, 4, 32, 48, 3), "float32")).shape)
    (1, 12, 12)
    """

    def __init__(
        self,
        hidden_dim: int,
        patch_size: int = 16,
        tubelet_size: int = 2,
        use_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_whole(1, hidden_dim=hidden_dim, patch_size=patch_size, tubelet_size=tubelet_size)
        check_flag(use_bias=use_bias)
        self.hidden_dim = hidden_dim
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.use_bias = use_bias

    def build(self, videos_shape: Sequence[int | None]) -> None:
        kernel_shape = (self.tubelet_size, self.patch_size, self.patch_size, videos_shape[-1])
        self.kernel = self.add_weight(
            shape=(*kernel_shape, self.hidden_dim), initializer=weight_initializer(), name="kernel"
        )
        if self.use_bias:
            self.bias = self.add_weight(shape=(self.hidden_dim,), initializer="zeros", name="bias")

    def grid_shape(self, video_shape: Sequence[int | None]) -> tuple[int, int, int]:
        """Return the token grid `(time, row, column)` of videos of a given shape.

        Args:
            video_shape: `(batch, frames, height, width, channels)`.

        Raises:
            ValueError: if frames, height or width are not known, or not multiples of the patch.
        """
        for name, size in zip(_GRID_AXES, video_shape[1:4], strict=True):
            if size is None:
                raise ValueError(
                    f"`{name}` of the videos must be a number when the model is part of another "
                    "one or exported; called by itself, it takes any size. Received: None"
                )
        self._check_multiples(video_shape)
        time, row, column = (n // s for n, s in zip(video_shape[1:4], self._steps, strict=True))  # type: ignore[operator]
        return time, row, column

    @property
    def _steps(self) -> tuple[int, int, int]:
        return (self.tubelet_size, self.patch_size, self.patch_size)

    def _check_multiples(self, video_shape: Sequence[int | None]) -> None:
        for name, size, step in zip(_GRID_AXES, video_shape[1:4], self._steps, strict=True):
            if size is not None and (size <= 0 or size % step):
                what = "tubelet_size" if name == "num_frames" else "patch_size"
                raise ValueError(
                    f"`{name}` must be a multiple of `{what}`={step}. Received: {size}"
                )

    def check_shape(self, video_shape: Sequence[int | None]) -> None:
        """Check the shape of videos, as far as it is known.

        Args:
            video_shape: `(batch, frames, height, width, channels)`, None where it is not known.

        Raises:
            ValueError: if the axes are others, or if frames, height or width are not multiples of
                the patch.
        """
        channels = self.kernel.shape[3]
        if len(video_shape) != 5 or video_shape[-1] not in (channels, None):
            moved = len(video_shape) == 5 and channels in video_shape[1:3]
            remedy = "; move the axis of the channels to the end" if moved else ""
            raise ValueError(
                f"`videos` must be (batch, frames, height, width, {channels} channels). "
                f"Received shape: {tuple(video_shape)}{remedy}"
            )
        self._check_multiples(video_shape)

    def patches(self, videos: Tensor) -> Tensor:
        """Cut videos into flattened patches, `(batch, tokens, values of a patch)`."""
        self.check_shape(videos.shape)
        grid = self.grid_shape(videos.shape)
        tubelet, patch, _, channels, _ = self.kernel.shape
        # Axes that stay neighbours are merged: LiteRT transposes no more than six axes.
        x = ops.reshape(videos, (-1, tubelet, grid[1], patch, grid[2], patch * channels))
        x = ops.transpose(x, (0, 2, 4, 1, 3, 5))
        return ops.reshape(x, (-1, math.prod(grid), tubelet * patch * patch * channels))

    def call(self, videos: Tensor, token_indices: Tensor | None = None) -> Tensor:
        patches = self.patches(videos)
        if token_indices is not None:
            patches = gather_tokens(patches, token_indices)
        kernel = ops.reshape(self.kernel, (patches.shape[-1], self.hidden_dim))
        return linear(patches, kernel, self.bias if self.use_bias else None)

    def compute_output_shape(
        self,
        videos_shape: Sequence[int | None],
        token_indices_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        tokens: int | None = None
        if token_indices_shape is not None:
            tokens = token_indices_shape[1]
        elif None not in videos_shape[1:4]:
            tokens = math.prod(self.grid_shape(videos_shape))
        return (videos_shape[0], tokens, self.hidden_dim)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "hidden_dim": self.hidden_dim,
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
            "use_bias": self.use_bias,
        }
