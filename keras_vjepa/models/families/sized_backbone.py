"""What the rivals' backbones say of their sizes (Tables 5 and 6; App. D.1)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from keras_vjepa.models.backbone import Size
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.presets.preset import WEIGHTS_FILE

# Of red, green and blue.
Colour = tuple[float, float, float]


class SizedBackbone:
    """Adds named sizes, and the shape of clips, to a backbone.

    A mixin for a model that has the attributes below.

    Attributes:
        sizes: the arguments of each size, by its name, as a dataclass.
        image_size: height and width in pixels, one int for squares.
        num_frames: frames of a clip.
        num_channels: colour channels.
        input_shapes: which frames the family takes: `"any"`, `"squares"`, or `"one"` size alone,
            that of `image_size`.
    """

    sizes: ClassVar[Mapping[str, Any]]
    image_size: Size
    num_frames: int
    num_channels: int
    input_shapes: ClassVar[str] = "any"

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> Self:
        """Make a backbone of one of `sizes`.

        Args:
            size: the name.
            kwargs: further arguments of the constructor; they replace those of the size.

        Raises:
            ValueError: for a name that does not exist.
        """
        if size not in cls.sizes:
            raise ValueError(f"`size` must be one of {', '.join(cls.sizes)}. Received: {size!r}")
        return cls(**{**cls.arguments_of_size(size), **kwargs})

    @classmethod
    def arguments_of_size(cls, size: str) -> dict[str, Any]:
        """Name the constructor arguments of one of `sizes`."""
        raise NotImplementedError

    @classmethod
    def number_of_weights(cls, **arguments: Any) -> int:
        """Check constructor arguments; count the numbers that the weights would be, making none.

        Args:
            arguments: those of the constructor; the others have its defaults.

        Raises:
            ValueError: for unknown names, and for values as the constructor does.
        """
        raise NotImplementedError

    @classmethod
    def weights_asked_for(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Do as `VJEPABackbone.weights_asked_for`."""
        return {WEIGHTS_FILE: cls.number_of_weights(**config)}

    @classmethod
    def colours_of(cls, config: Mapping[str, Any]) -> dict[str, Colour]:
        """Name the mean and the deviation that pixels in [0, 1] are normalised with.

        Args:
            config: constructor arguments of a model, as a preset holds them.
        """
        raise NotImplementedError

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Return frames, height, width and channels of the clips that the backbone is made for."""
        return (self.num_frames, *height_and_width(self.image_size), self.num_channels)

    @property
    def input_size(self) -> Size:
        """Return height and width that it is evaluated at."""
        return self.image_size
