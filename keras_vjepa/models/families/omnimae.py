"""OmniMAE: VideoMAE's table as a weight, clips of one size, and images (Tables 5, 6; App. D.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_vjepa.layers.image_positions import flat_table, stretched
from keras_vjepa.layers.positions import cubic_weights
from keras_vjepa.models.backbone import SIZES
from keras_vjepa.models.dimensions import token_grid
from keras_vjepa.models.families.vision_arguments import check_square
from keras_vjepa.models.families.vision_backbone import Facts, VisionBackbone
from keras_vjepa.types import Tensor


@keras.saving.register_keras_serializable("keras_vjepa")
class OmniMAEBackbone(VisionBackbone):
    """Encode clips and images as OmniMAE's trunk does (facebookresearch/omnivore).

    Clips must have the size that it is made for, as in the authors' code. Images `(batch, height,
    width, channels)` are repeated to one tubelet and have the positions of the first time step,
    stretched for another size. The huge model has patches of 14 pixels. Arguments: see
    `VisionBackbone`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models import OmniMAEBackbone
    >>> backbone = OmniMAEBackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> tuple(backbone(np.zeros((1, 48, 48, 3), "float32")).shape)
    (1, 9, 24)
    """

    facts = Facts()
    input_shapes: ClassVar[str] = "one"
    sizes: ClassVar = {name: SIZES[name] for name in ("base", "large", "huge")}

    @classmethod
    def check_grid(cls, arguments: Mapping[str, Any]) -> None:
        """Do as `VisionBackbone.check_grid`."""
        check_square(token_grid(arguments), arguments["image_size"])

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Do as `VisionBackbone.check_shape`; images may have any size, clips one.

        Raises:
            ValueError: for others.
        """
        if len(shape) == 4:
            self.tubelet_embedding.check_shape((shape[0], self.tubelet_size, *shape[1:]))
            if None not in shape[1:3] and shape[1] != shape[2]:
                check_square((1, *shape[1:3]), shape[1:3])  # type: ignore[arg-type]
            return
        super().check_shape(shape)
        pairs = zip(shape[1:], self.video_shape, strict=True)
        if not all(size is None or size == own for size, own in pairs):
            raise ValueError(
                f"`videos` must be clips of {self.video_shape[:3]}, or images, in this family. "
                f"Received shape: {tuple(shape)}"
            )

    def with_time(self, videos: Tensor) -> Tensor:
        """Do as `VisionBackbone.with_time`, repeated to one tubelet."""
        if len(videos.shape) == 5:
            return videos
        return ops.repeat(ops.expand_dims(videos, 1), self.tubelet_size, axis=1)

    def fresh_table(self, grid_shape: tuple[int, int, int]) -> np.ndarray:
        """Do as `VisionBackbone.fresh_table`."""
        return flat_table(int(np.prod(grid_shape)), self.hidden_dim)

    def positions(self, grid_shape: tuple[int, int, int]) -> Tensor:
        """Do as `VisionBackbone.positions`."""
        table = ops.convert_to_tensor(self.position_table)
        if grid_shape == self.grid_shape:
            return table
        self.check_grid_of_image(grid_shape)
        own = self.grid_shape[1:]
        first = table[: own[0] * own[1]]
        if grid_shape[1:] == own:
            return first
        matrix = cubic_weights(own[0], grid_shape[1])
        return stretched(first, own, (matrix, matrix))

    def check_grid_of_image(self, grid_shape: tuple[int, int, int]) -> None:
        """Refuse clips of another size, and images that are no squares."""
        if grid_shape[0] != 1:
            raise ValueError(
                f"`videos` must be clips of {self.video_shape[:3]}, or images, in this family. "
                f"Received a grid of: {grid_shape}"
            )
        check_square(grid_shape, grid_shape[1:])

    def table_for(self, new: VisionBackbone) -> tuple[Tensor, str] | None:
        """Do as `VisionBackbone.table_for`; the family has no rule for clips of another size."""
        raise ValueError(
            f"`image_size` and `num_frames` must be those of the weights in this family, "
            f"{self.image_size} and {self.num_frames}: images of any size can be encoded as they "
            f"are. Received: {new.image_size} and {new.num_frames}"
        )
