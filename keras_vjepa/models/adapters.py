"""Say what tasks ask of a backbone, and adapt backbones from elsewhere to it (§4.3, App. D.1).

A task asks a backbone for the tokens of clips, and for a few facts about it: `TokenEncoder` lists
them. `VJEPABackbone` offers them itself. `as_token_encoder` finds the adapter for any other model:

- for a functional model, an adapter that reads from the shapes of its input and output what the
  model does not say itself; the only input may have a name, as in models of keras-hub;
- for any other Keras model, an adapter that relies on what the model says of itself.

To support a further kind of backbone, write one class and decorate it with `register_adapter`.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import keras
from keras import ops

from keras_vjepa.types import Tensor

# The most pixels that an image model encodes at once: 64 frames of 224 x 224.
_PIXELS_AT_ONCE = 64 * 224 * 224

Size = int | tuple[int, int]


@runtime_checkable
class TokenEncoder(Protocol):
    """Offers what tasks ask of a backbone.

    Attributes:
        hidden_dim: width of a token.
        num_heads: attention heads; a probe on the backbone has as many unless it says otherwise.
            None for a backbone without any.
        is_image_model: whether it takes single images; it is then applied to every frame.
        num_frames: frames of the clips that it takes, 1 for an image model; None for any number.
        tubelet_size: frames of a clip that share their tokens, or None where that is not known.
        image_size: height and width of its input, one int for squares; None for any size.
    """

    hidden_dim: int
    num_heads: int | None
    is_image_model: bool
    num_frames: int | None
    tubelet_size: int | None
    image_size: Size | None

    def clip_tokens(self, clips: Tensor, training: bool = False) -> Tensor:
        """Return the tokens of clips, ordered by time.

        Args:
            clips: float `(batch, frames, height, width, channels)`, also for an image model.
            training: whether the backbone itself is trained.

        Returns:
            `(batch, tokens, hidden_dim)`.

        Raises:
            ValueError: if the backbone returns something of another shape.
        """
        ...


class Adapter(Protocol):
    """Makes a `TokenEncoder` from backbones of one kind."""

    @staticmethod
    def fits(backbone: keras.Model) -> bool:
        """Tell whether the backbone is of this kind."""
        ...

    def __call__(self, backbone: keras.Model) -> TokenEncoder:
        """Return a `TokenEncoder` that wraps the backbone."""
        ...


AdapterT = TypeVar("AdapterT", bound=Any)

_ADAPTERS: list[Adapter] = []


def register_adapter(adapter: AdapterT) -> AdapterT:
    """Register a class that `as_token_encoder` tries before those registered earlier.

    Args:
        adapter: a class with a static method `fits(backbone)`. The class is called with a backbone
            that fits, and the object it makes is a `TokenEncoder`.

    Example:

    >>> import keras
    >>> from keras_vjepa.models.adapters import DeclaredBackbone, register_adapter
    >>> class Reservoir(keras.Model):
    ...     width = 7
    >>> @register_adapter
    ... class ReservoirAdapter(DeclaredBackbone):
    ...     @staticmethod
    ...     def fits(backbone):
    ...         return type(backbone).__name__ == "Reservoir"
    ...
    ...     def facts(self):
    ...         return {"hidden_dim": self.backbone.width, "is_image_model": True}
    >>> as_token_encoder(Reservoir()).hidden_dim
    7
    """
    _ADAPTERS.insert(0, adapter)
    return adapter


def as_token_encoder(backbone: keras.Model) -> TokenEncoder:
    """Return a `TokenEncoder` for a backbone: the backbone itself, or an adapter around it.

    Args:
        backbone: any Keras model that returns `(batch, tokens, dim)`.

    Raises:
        ValueError: if the backbone lacks something that tasks need; the message says what.

    Example:

    >>> import keras
    >>> from keras_vjepa.models.adapters import as_token_encoder
    >>> images = keras.Input((16, 16, 3))
    >>> tokens = keras.layers.Dense(10)(keras.layers.Reshape((-1, 48))(images))
    >>> encoder = as_token_encoder(keras.Model(images, tokens))
    >>> encoder.hidden_dim, encoder.is_image_model, encoder.image_size
    (10, True, 16)
    """
    if isinstance(backbone, TokenEncoder):
        return backbone
    return next(adapter for adapter in _ADAPTERS if adapter.fits(backbone))(backbone)


def frame_by_frame(
    clips: Tensor, encode: Callable[[Tensor], Tensor], training: bool = False
) -> Tensor:
    """Encode every frame by itself, and put the tokens of a clip one after the other.

    Many frames are encoded part by part, so that memory does not grow with their number, but for
    the tokens that come out.

    Args:
        clips: `(batch, frames, height, width, channels)`.
        encode: takes `(images, height, width, channels)`, returns `(images, tokens, dim)`.
        training: whether all frames are encoded at once, as gradients need them all.

    Returns:
        `(batch, frames * tokens, dim)`.
    """
    batch, frames, *image = clips.shape
    images = ops.reshape(clips, (-1, *image))
    size = (batch or 1) * frames if training else images_at_once(batch, frames, image[0] * image[1])
    num_parts = (batch or 1) * frames // size
    if num_parts == 1:
        tokens = encode(images)
    else:
        tokens = ops.map(encode, ops.reshape(images, (num_parts, -1, *image)))
    return ops.reshape(tokens, (-1, frames * tokens.shape[-2], tokens.shape[-1]))


def images_at_once(batch: int | None, frames: int, pixels: int) -> int:
    """Choose how many frames are encoded at once: a divisor of all that is not too many.

    Args:
        batch: clips; None if not known, and then the number is of each clip.
        frames: frames of a clip.
        pixels: of a frame.

    Example:

    >>> from keras_vjepa.models.adapters import images_at_once
    >>> images_at_once(2, 16, 224 * 224), images_at_once(8, 16, 512 * 512)
    (32, 8)
    """
    images, most = (batch or 1) * frames, max(1, _PIXELS_AT_ONCE // pixels)
    return next(size for size in range(min(images, most), 0, -1) if images % size == 0)


def as_tokens(outputs: Tensor) -> Tensor:
    """Make tokens of a map of features, such as that of a convolutional network or a Swin.

    Args:
        outputs: `(batch, rows, columns, dim)` or `(batch, time, rows, columns, dim)`; of other axes
            they are returned as they are.

    Returns:
        `(batch, tokens, dim)`, ordered by time, then row, then column.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models.adapters import as_tokens
    >>> tuple(as_tokens(np.zeros((2, 4, 7, 7, 16))).shape)
    (2, 196, 16)
    """
    if len(outputs.shape) not in (4, 5):
        return outputs
    inner = outputs.shape[1:-1]
    count = -1 if None in inner else math.prod(inner)
    return ops.reshape(outputs, (ops.shape(outputs)[0], count, outputs.shape[-1]))


# --- Backbones from elsewhere --------------------------------------------------------------------


@register_adapter
class DeclaredBackbone:
    """Adapts a Keras model that describes itself, by attributes named as in `TokenEncoder`.

    `hidden_dim` and `is_image_model` must be among these attributes. A subclass for a kind of model
    overrides `facts`, to supply attributes that the model lacks, and `encode`, if the model is not
    simply called with the clips.

    Args:
        backbone: the model.

    Raises:
        ValueError: if an attribute is missing.
    """

    required: ClassVar[tuple[str, ...]] = ("hidden_dim", "is_image_model")
    optional: ClassVar[tuple[str, ...]] = ("num_heads", "num_frames", "tubelet_size", "image_size")

    hidden_dim: int
    num_heads: int | None
    is_image_model: bool
    num_frames: int | None
    tubelet_size: int | None
    image_size: Size | None

    def __init__(self, backbone: keras.Model) -> None:
        self.backbone = backbone
        names = (*self.required, *self.optional)
        declared = {name: getattr(backbone, name, None) for name in names}
        facts = self.facts()
        known = {n: facts.get(n) if declared[n] is None else declared[n] for n in names}
        missing = [f"`{name}`" for name in self.required if known[name] is None]
        if missing:
            raise ValueError(
                f"`backbone` must have the attribute {' and '.join(missing)}, or an adapter (see "
                f"`register_adapter`). Received: a {type(backbone).__name__} without"
            )
        if known["is_image_model"]:
            known["num_frames"] = 1
        vars(self).update(known)

    @staticmethod
    def fits(backbone: keras.Model) -> bool:
        """Accept any model: this adapter is the last to be tried."""
        return True

    def facts(self) -> dict[str, Any]:
        """Return attributes that the model itself lacks, by their names in `TokenEncoder`."""
        return {}

    def encode(self, inputs: Tensor, training: bool) -> Tensor:
        """Call the model with clips or, if it is an image model, images."""
        return self.backbone(inputs, training=training)

    def clip_tokens(self, clips: Tensor, training: bool = False) -> Tensor:
        """Return the tokens of clips; see `TokenEncoder`."""

        def encode(inputs: Tensor) -> Tensor:
            tokens = as_tokens(self.encode(inputs, training))
            if len(tokens.shape) != 3:
                raise ValueError(
                    "`backbone` must return (batch, tokens, dim). "
                    f"Received an output of shape: {tuple(tokens.shape)}"
                )
            return tokens

        return frame_by_frame(clips, encode, training) if self.is_image_model else encode(clips)


@register_adapter
class FunctionalBackbone(DeclaredBackbone):
    """Adapts a functional or sequential model with one input, as those of keras-hub and keras-cv.

    What the model's attributes do not say is read from the shapes of its input and output.
    """

    @staticmethod
    def fits(backbone: keras.Model) -> bool:
        """Accept models whose inputs and outputs are known before they are called."""
        return hasattr(backbone, "inputs") and bool(backbone.inputs)

    def facts(self) -> dict[str, Any]:
        """Read the attributes from the shapes of the model's input and output."""
        if len(self.backbone.inputs) != 1:
            names = ", ".join(tensor.name for tensor in self.backbone.inputs)
            raise ValueError(f"`backbone` must have one input. Received one with: {names}")
        shape = self.backbone.inputs[0].shape
        if len(shape) not in (4, 5):
            raise ValueError(
                "`backbone` must take (batch, frames, height, width, channels) or, without frames, "
                f"images. Received one with an input of shape: {tuple(shape)}"
            )
        height, width = shape[-3:-1]
        return {
            "hidden_dim": self.backbone.outputs[0].shape[-1],
            "is_image_model": len(shape) == 4,
            "num_frames": shape[1],
            "image_size": height if height == width else (height, width),
        }

    def encode(self, inputs: Tensor, training: bool) -> Tensor:
        """Call the model, with its input in a dictionary if the input has a name."""
        # Sequential models have no `input`, only `inputs`.
        structure = getattr(self.backbone, "input", None)
        if isinstance(structure, dict):
            inputs = dict.fromkeys(structure, inputs)
        return super().encode(inputs, training)
