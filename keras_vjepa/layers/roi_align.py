"""Pool the features of boxes from a map of features by RoIAlign (App. D.2).

The paper follows the detection protocol of Feichtenhofer et al. (2021), where the features of a
person's box are pooled by RoIAlign to 7 x 7.

Each bin of a box is the mean of bilinear samples on a regular grid. The weight of a cell in a
sample, and also in the mean of a bin, is a weight of its row times one of its column. Therefore two
small matrices for each box suffice, and no gather is needed.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import MOST_SIDE, check_flag, check_number, check_size, check_whole
from keras_vjepa.types import Tensor

# With more samples in a bin, the results would not differ visibly.
_MOST_SAMPLES = 64
# The most samples that can reach a cell in an adaptive grid. Samples are more than half a cell
# apart, and reach a cell from one cell on each side. These are four samples at most, and one more
# is added before and after them, in case that a number is rounded.
_REACHING = 6


@keras.saving.register_keras_serializable("keras_vjepa")
class RoIAlign(keras.layers.Layer):
    """Pools the features of each box to a grid of bins of one size (App. D.2).

    A position in pixels times `spatial_scale` is a position in cells of the map. A bin is the mean
    of samples on a regular grid, each bilinear between the centres of four cells. A sample outside
    the map by up to one cell has the border's value; a sample further outside counts as 0.

    Args:
        output_size: number of bins of a box: one number for squares, or height and width.
        spatial_scale: number of cells of the map for each pixel of a box.
        sampling_ratio: number of samples of a bin along each axis; 0 is adaptive, the number of
            cells that the bin covers, rounded up.
        aligned: whether position 0 is the left edge of the first cell. If not, it is that cell's
            centre, half a cell off, and boxes are at least one cell large. This is the form from
            before 2019, which VideoMAE's detection has.

    Call arguments:
        features: `(batch, height, width, channels)`.
        boxes: `(batch, boxes, 4)` with left, top, right and bottom in pixels, also beyond the map.
            No gradient reaches them, and they keep their precision if features have half.

    Returns:
        `(batch, boxes, *output_size, channels)`. With `aligned` and adaptive sampling, a box
        without width or height gives zeros, and so does one whose ends are exchanged.

    Raises:
        ValueError: for arguments out of range, and for inputs of other shapes.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.layers import RoIAlign
    >>> features = np.arange(4.0, dtype="float32").reshape(1, 1, 4, 1)
    >>> boxes = np.array([[[16, 0, 48, 16]]], "float32")
    >>> ops.convert_to_numpy(RoIAlign(output_size=(1, 2))(features, boxes))[0, 0, 0, :, 0].tolist()
    [1.0, 2.0]
    """

    def __init__(
        self,
        output_size: int | Sequence[int] = 7,
        spatial_scale: float = 1 / 16,
        sampling_ratio: int = 0,
        aligned: bool = True,
        **kwargs: Any,
    ) -> None:
        # In half precision, the positions of boxes would be wrong by pixels.
        super().__init__(autocast=False, **kwargs)
        check_size(MOST_SIDE, output_size=output_size)
        check_number("(0, 64]", spatial_scale=spatial_scale)
        check_whole(0, _MOST_SAMPLES, sampling_ratio=sampling_ratio)
        check_flag(aligned=aligned)
        self.output_size = (
            output_size if isinstance(output_size, int) else (output_size[0], output_size[1])
        )
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    @property
    def bins(self) -> tuple[int, int]:
        """Return the numbers of bins along height and width."""
        size = self.output_size
        return (size, size) if isinstance(size, int) else size

    def build(
        self, features_shape: Sequence[int | None], boxes_shape: Sequence[int | None]
    ) -> None:
        check_shapes(features_shape, boxes_shape)

    def call(self, features: Tensor, boxes: Tensor) -> Tensor:
        check_shapes(features.shape, boxes.shape)
        features = ops.cast(features, self.compute_dtype)
        boxes = ops.stop_gradient(ops.cast(boxes, "float32"))
        _, height, width, channels = features.shape
        # Engines cannot find an axis's size, -1, where there is no sample or no box.
        batch, number, _ = ops.shape(boxes)
        rows, columns = self.bins
        weights = self._weights(boxes[..., 1], boxes[..., 3], rows, height)
        # This multiplies (batch, boxes * rows, height) by (batch, height, width * channels).
        weights = ops.reshape(weights, (batch, number * rows, height))
        pooled = ops.matmul(weights, ops.reshape(features, (-1, height, width * channels)))
        pooled = ops.reshape(pooled, (batch, number, rows, width, channels))
        weights = self._weights(boxes[..., 0], boxes[..., 2], columns, width)
        return ops.matmul(ops.expand_dims(weights, 2), pooled)

    def _weights(self, low: Tensor, high: Tensor, bins: int, cells: int) -> Tensor:
        """Compute the weight of each cell in each bin along one axis.

        Args:
            low, high: ends of the boxes in pixels, `(batch, boxes)`.
            bins: number of bins of a box.
            cells: number of cells of the map.

        Returns:
            `(batch, boxes, bins, cells)`.
        """
        offset = 0.5 if self.aligned else 0.0
        low, high = (x * self.spatial_scale - offset for x in (low, high))
        size = high - low if self.aligned else _at_least(high - low, 1.0)
        size, low = (ops.reshape(x, (*ops.shape(x), 1, 1, 1)) for x in (size, low))
        bin_size = size / bins
        start = low + ops.reshape(ops.arange(bins, dtype="float32"), (-1, 1, 1)) * bin_size
        cell = ops.reshape(ops.arange(cells, dtype="float32"), (-1, 1))
        if self.sampling_ratio:
            count = divisor = self.sampling_ratio * ops.ones_like(bin_size)
            sample: Any = ops.arange(self.sampling_ratio, dtype="float32")
        else:
            count = ops.ceil(bin_size)
            divisor = _at_least(count, 1.0)
            # Only samples that can reach a cell are taken, beginning with one before the first.
            spacing = _at_least(bin_size / divisor, 1e-6)
            first = ops.floor((cell - 1.0 - start) / spacing - 0.75)
            sample = ops.minimum(_at_least(first, 0.0), divisor - 1.0)
            sample = sample + ops.arange(_REACHING, dtype="float32")
        position = start + (sample + 0.5) * bin_size / divisor
        inside = _at_least(-_at_least(-position, 1.0 - cells), 0.0)
        counts = (position >= -1.0) & (position <= float(cells)) & (sample < count)
        weight = ops.relu(1.0 - ops.abs(inside - cell)) * ops.cast(counts, "float32")
        weights = ops.sum(weight / divisor, axis=-1)
        return ops.cast(weights, self.compute_dtype)

    def compute_output_shape(
        self, features_shape: Sequence[int | None], boxes_shape: Sequence[int | None]
    ) -> tuple[int | None, ...]:
        return (boxes_shape[0], boxes_shape[1], *self.bins, features_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "output_size": self.output_size,
            "spatial_scale": self.spatial_scale,
            "sampling_ratio": self.sampling_ratio,
            "aligned": self.aligned,
        }


def _at_least(x: Tensor, low: float) -> Tensor:
    """Compute the larger of `x` and a number, which is not copied to the device."""
    return ops.maximum(x, low * ops.ones_like(x))


def check_shapes(features: Sequence[int | None], boxes: Sequence[int | None]) -> None:
    """Check the shapes of a map and of boxes; raise a `ValueError` that names the wrong one."""
    if len(features) != 4 or None in features[1:]:
        raise ValueError(
            "`features` must be (batch, height, width, channels), all but the batch known. "
            f"Received shape: {tuple(features)}"
        )
    if len(boxes) != 3 or boxes[-1] != 4:
        raise ValueError(f"`boxes` must be (batch, boxes, 4). Received shape: {tuple(boxes)}")
    if None not in (features[0], boxes[0]) and features[0] != boxes[0]:
        raise ValueError(
            f"`boxes` must be of as many images as `features`, {features[0]}. Received: {boxes[0]}"
        )
