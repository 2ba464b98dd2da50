"""Encode videos: x-encoder and y-encoder share this architecture (§3.3, App. B, App. C).

Departures from the paper's text, as in the authors' code: the position table is stored with the
weights, so the moving average of the target encoder passes through it; the final norm is applied
to context, target and evaluation features alike; drop path is off unless `drop_path_rate` is given,
which fine-tuning does (App. D.3).

V-JEPA 2's encoder is the same network with rotary positions in every attention instead of the table
(official-behaviour §12). Departure from its authors' code: initial weights are not scaled by depth.
V-JEPA 2.1's has other rotary positions, norms for several levels, and a tokenizer for images
(vjepa21 §1).
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import arguments_of, check_choice, check_flag, places
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.dense import TokenNorm, layer_norm
from keras_vjepa.layers.embedding import TubeletEmbedding
from keras_vjepa.layers.positions import position_table, resample_position_table
from keras_vjepa.layers.rotary import make_rotations
from keras_vjepa.layers.stochastic_depth import SkipsBranches
from keras_vjepa.layers.transformer import apply_blocks, transformer_blocks
from keras_vjepa.models.adapters import frame_by_frame
from keras_vjepa.models.backbone_preset import BackbonePreset
from keras_vjepa.models.dimensions import (
    MODALITY_STDDEV,
    POSITION_EMBEDDINGS,
    encoder_weights,
    height_and_width,
)
from keras_vjepa.models.exporting import Exportable
from keras_vjepa.models.lora import LowRankAdaptable
from keras_vjepa.models.pixels import PixelModel
from keras_vjepa.models.token_numbers import check_token_numbers
from keras_vjepa.presets.preset import WEIGHTS_FILE
from keras_vjepa.types import Tensor

Size = int | tuple[int, int]


@dataclasses.dataclass(frozen=True)
class EncoderSize:
    """Holds the widths and the depth of an encoder size that has a name, such as "large".

    Attributes:
        hidden_dim: width of a token.
        num_layers: transformer blocks.
        num_heads: attention heads.
        mlp_ratio: width of the MLP's hidden layer over `hidden_dim`.
    """

    hidden_dim: int
    num_layers: int
    num_heads: int
    mlp_ratio: float = 4.0


# Large and huge are those of App. C; the others are common sizes (official-behaviour §2).
SIZES = {
    "tiny": EncoderSize(192, 12, 3),
    "small": EncoderSize(384, 12, 6),
    "base": EncoderSize(768, 12, 12),
    "large": EncoderSize(1024, 24, 16),
    "huge": EncoderSize(1280, 32, 16),
    "giant": EncoderSize(1408, 40, 16, mlp_ratio=48 / 11),
    # V-JEPA 2's giant.
    "giant_xformers": EncoderSize(1408, 40, 22, mlp_ratio=48 / 11),
    # V-JEPA 2.1's largest.
    "gigantic": EncoderSize(1664, 48, 26, mlp_ratio=64 / 13),
}
POSITION_MODES = {
    "sincos": ("resample", "fresh"),
    "rotary": ("fresh", "index"),
    "rotary_pairs": ("fresh", "index"),
}


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPABackbone(
    BackbonePreset,
    LowRankAdaptable,
    StepFunctions,
    PixelModel,
    SkipsBranches,
    TorchModule,
    Exportable,
):
    """Encodes video clips with a vision transformer, the encoder E of V-JEPA (§3.3).

    Args:
        image_size: height and width of the clips in pixels, one int for squares. Positions are
            made for this size; other sizes can be passed too (see `position_mode`).
        num_frames: frames of a clip; 1 makes an image model (2-D position table, tubelets of one
            frame).
        patch_size: height and width of a patch in pixels.
        tubelet_size: frames in a patch.
        hidden_dim: width of a token.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide `hidden_dim`.
        mlp_ratio: width of the MLP's hidden layer over `hidden_dim`.
        position_embedding: `"sincos"`, a table added to the tokens (V-JEPA); `"rotary"`, queries
            and keys rotated in every attention (V-JEPA 2); or `"rotary_pairs"`, the same with one
            angle for both channels of a pair (V-JEPA 2.1).
        uniform_power: whether time, row and column share the table's channels equally.
        position_mode: what to do with clips of another size. For tables, `"resample"`, the default,
            stretches the stored one (as the reference's encoder does), and `"fresh"` makes a new
            one for that size (as its evaluations do). For rotary positions, `"fresh"`, the default,
            counts in the clip's own grid (as the authors' code does), and `"index"` in the grid of
            `image_size` for every clip (as the transformers package does).
        layer_norm_epsilon: epsilon of every norm.
        remat: compute what happens inside a block again in the backward pass instead of keeping it
            (activation checkpointing): less memory, more time, the same numbers.
        num_channels: colour channels.
        drop_path_rate: how often the last block skips its attention, or its MLP, for a sample in
            training; earlier blocks do so less often, along a line from 0. It is meant for
            fine-tuning, has no weights, and is off at inference.
        position_reach: for rotary positions, the position of a clip's last row and last column,
            whatever their number (V-JEPA 2.1: 15); None counts rows and columns one by one.
        level_layers: numbers of the blocks, rising from 0 to the last, whose outputs have a norm of
            their own (V-JEPA 2.1: four); None for one norm after the last block.
        modalities: whether clips of one frame are images, with a tokenizer of their own, and images
            and videos each have a learned vector that is added to every token (V-JEPA 2.1).

    Call arguments:
        videos: float `(batch, frames, height, width, channels)`, normalised; image models also
            take `(batch, height, width, channels)`.
        token_indices: optional int `(batch, picked)`: encode only these tokens.
        padding_mask: optional bool `(batch, picked)`; tokens that are False are not attended to.
        training: whether `drop_path_rate` takes effect.
        hierarchical: whether the outputs of all `level_layers` are returned side by side.

    Returns:
        `(batch, tokens, hidden_dim)`, after the final norm; the tokens of a clip are ordered by
        time, then row, then column, or as in `token_indices`. If `hierarchical`, `(batch, tokens,
        levels * hidden_dim)`, the lowest level first, each after its own norm.

    Raises:
        ValueError: for arguments out of range, sizes that are not multiples of the patch, and a
            `hidden_dim` that is not a multiple of `num_heads`.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPABackbone
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> tuple(backbone(np.zeros((1, 4, 32, 32, 3), "float32")).shape)
    (1, 8, 24)
    """

    def __init__(
        self,
        image_size: Size = 224,
        num_frames: int = 16,
        patch_size: int = 16,
        tubelet_size: int = 2,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        position_embedding: str = "sincos",
        uniform_power: bool = True,
        position_mode: str | None = None,
        layer_norm_epsilon: float = 1e-6,
        num_channels: int = 3,
        remat: bool = False,
        drop_path_rate: float = 0.0,
        position_reach: float | None = None,
        level_layers: tuple[int, ...] | None = None,
        modalities: bool = False,
        **kwargs: Any,
    ) -> None:
        # At this point `locals()` holds all arguments by their names.
        encoder_weights(locals())
        super().__init__(**kwargs)
        # A JSON file gives a tuple back as a list.
        self.image_size = image_size if isinstance(image_size, int) else (*image_size,)
        self.num_frames = num_frames
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.position_embedding = position_embedding
        self.uniform_power = uniform_power
        self.position_mode = _mode(position_embedding, position_mode)
        self.layer_norm_epsilon = layer_norm_epsilon
        self.remat = remat
        self.num_channels = num_channels
        self.drop_path_rate = drop_path_rate
        self.position_reach = position_reach
        self.level_layers = None if level_layers is None else (*level_layers,)
        self.modalities = modalities
        # The backbone is built here, so that it has its weights from the start. They are made in
        # `build`, because only there does Keras give every variable a path of its own.
        self.build((None, *self.video_shape))

    def build(self, videos_shape: Sequence[int | None]) -> None:
        if self.built:
            return
        policy = self.dtype_policy
        tokens_shape = (None, None, self.hidden_dim)
        self.tubelet_embedding = TubeletEmbedding(
            self.hidden_dim,
            self.patch_size,
            1 if self.is_image_model else self.tubelet_size,
            name="tubelet_embedding",
            dtype=policy,
        )
        self.grid_shape = self.tubelet_embedding.grid_shape(videos_shape)
        self.tubelet_embedding.build(videos_shape)
        if self.position_embedding == "sincos":
            table = self._table(self.grid_shape)
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
        # The norm of the last level is `norm`.
        self.lower_norms = [
            layer_norm(self.layer_norm_epsilon, f"norm_of_block_{layer}", policy)
            for layer in (self.level_layers or ())[:-1]
        ]
        for norm in self.lower_norms:
            norm.build(tokens_shape)
        if self.modalities:
            self._build_modalities(videos_shape)
        self.restore_layer_states()

    def _build_modalities(self, videos_shape: Sequence[int | None]) -> None:
        """Make the tokenizer of images and the vectors of both modalities."""
        self.image_embedding = TubeletEmbedding(
            self.hidden_dim, self.patch_size, 1, name="image_embedding", dtype=self.dtype_policy
        )
        self.image_embedding.build((None, 1, *videos_shape[2:]))
        self.video_vector, self.image_vector = (
            self.add_weight(
                shape=(1, 1, self.hidden_dim),
                initializer=keras.initializers.RandomNormal(stddev=MODALITY_STDDEV),
                name=name,
            )
            for name in ("video_vector", "image_vector")
        )

    @classmethod
    def from_size(cls, size: str, **kwargs: Any) -> Self:
        """Make a backbone of a size that has a name, a key of `SIZES` such as "tiny" or "gigantic".

        Args:
            size: the name of the size.
            kwargs: further arguments of the constructor; they replace those of the size.

        Returns:
            The backbone, with initial weights.

        Raises:
            ValueError: for a name that does not exist.

        Example:

        >>> from keras_vjepa import VJEPABackbone
        >>> VJEPABackbone.from_size("tiny", image_size=32, num_frames=2).hidden_dim
        192
        """
        if size not in SIZES:
            raise ValueError(f"`size` must be one of {', '.join(SIZES)}. Received: {size!r}")
        return cls(**{**dataclasses.asdict(SIZES[size]), **kwargs})

    @classmethod
    def number_of_weights(cls, **arguments: Any) -> int:
        """Count the numbers in the weights of a backbone without making it; check its arguments.

        Args:
            arguments: arguments of the constructor; those left out have its defaults.

        Raises:
            ValueError: for unknown names, and for values that the constructor refuses.

        Example:

        >>> from keras_vjepa import VJEPABackbone
        >>> VJEPABackbone.number_of_weights(hidden_dim=1024, num_layers=24, num_heads=16)
        305490944
        """
        own = arguments_of(cls, arguments)
        _mode(own["position_embedding"], own["position_mode"])
        return encoder_weights(own)

    @classmethod
    def weights_asked_for(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Count the weights that the files of a preset must hold, from the model's config.

        Args:
            config: the constructor's arguments, as a preset holds them.

        Returns:
            How many numbers each file must hold, by the names of the files.

        Raises:
            ValueError: if an argument is unknown or out of range.
        """
        return {WEIGHTS_FILE: cls.number_of_weights(**config)}

    @property
    def is_image_model(self) -> bool:
        """Return whether the backbone encodes single images, clips of one frame."""
        return self.num_frames == 1

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Return the shape of the clips that it is made for: frames, height, width, channels.

        Example:

        >>> from keras_vjepa import VJEPABackbone
        >>> VJEPABackbone.from_size("tiny", image_size=32, num_frames=4).video_shape
        (4, 32, 32, 3)
        """
        return (self.num_frames, *height_and_width(self.image_size), self.num_channels)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of a clip of the size that the backbone was made for."""
        return math.prod(self.grid_shape)

    @property
    def patch_dim(self) -> int:
        """Return the number of values in one tubelet of pixels."""
        return math.prod(self.tubelet_embedding.kernel.shape[:-1])

    @property
    def position_axes(self) -> tuple[int, ...]:
        """Return the grid of positions: `(time, row, column)`, or `(row, column)` for images."""
        return self._axes(self.grid_shape)

    def _axes(self, grid_shape: tuple[int, int, int]) -> tuple[int, ...]:
        return grid_shape[1:] if self.is_image_model else grid_shape

    def _table(self, grid_shape: tuple[int, int, int]) -> np.ndarray:
        return position_table(self.hidden_dim, self._axes(grid_shape), self.uniform_power)

    def positions(self, grid_shape: tuple[int, int, int]) -> Tensor:
        """Return the position table, `(tokens, hidden_dim)`, of a token grid; sincos only."""
        if grid_shape == self.grid_shape:
            return ops.convert_to_tensor(self.position_table)
        if self.position_mode == "fresh":
            return ops.convert_to_tensor(self._table(grid_shape))
        return resample_position_table(
            ops.convert_to_tensor(self.position_table), self.position_axes, self._axes(grid_shape)
        )

    def tokenizer(self, video_shape: Sequence[int | None]) -> TubeletEmbedding:
        """Return the layer that makes tokens of videos of a shape: of images, it may be another.

        Args:
            video_shape: `(batch, frames, height, width, channels)`.
        """
        is_image = self.modalities and len(video_shape) == 5 and video_shape[1] == 1
        return self.image_embedding if is_image else self.tubelet_embedding

    def token_grid(self, video_shape: Sequence[int | None]) -> tuple[int, int, int]:
        """Return the token grid `(time, row, column)` of videos of a shape.

        Args:
            video_shape: `(batch, frames, height, width, channels)`.

        Raises:
            ValueError: for sizes that are not known, or not multiples of the patch.
        """
        return self.tokenizer(video_shape).grid_shape(video_shape)

    def table_for(self, new: Self) -> tuple[Tensor, str] | None:
        """Return what another size's `position_table` is, and how it came about; None for rotary.

        Args:
            new: a backbone of that size.
        """
        if self.position_embedding != "sincos":
            return None
        if self.position_mode == "fresh":
            return ops.convert_to_tensor(new.position_table), "were made anew"
        stored = ops.convert_to_tensor(self.position_table)
        table = resample_position_table(stored, self.position_axes, new.position_axes)
        return table, "were stretched"

    def rotations(self, videos: Tensor, token_indices: Tensor | None = None) -> Tensor | None:
        """Return the rotary positions of tokens, as `make_rotations` does; None for sincos."""
        if self.position_embedding == "sincos":
            return None
        grid_shape = self.token_grid(self._with_time(videos).shape)
        if token_indices is None:
            token_indices = ops.expand_dims(ops.arange(0, math.prod(grid_shape), dtype="int32"), 0)
        if self.position_mode == "index":
            grid_shape = self.grid_shape
        return make_rotations(
            token_indices,
            grid_shape,
            self.hidden_dim // self.num_heads,
            self.position_embedding == "rotary_pairs",
            self.position_reach,
        )

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Check the shape of videos, or of images for a model of images, as far as it is known.

        Raises:
            ValueError: for other axes, and for sizes that are not multiples of the patch.
        """
        is_image = self.is_image_model and len(shape) == 4
        self.tokenizer(shape).check_shape((shape[0], 1, *shape[1:]) if is_image else shape)

    def _with_time(self, videos: Tensor) -> Tensor:
        is_image = self.is_image_model and len(videos.shape) == 4
        return ops.expand_dims(videos, 1) if is_image else videos

    def embed(self, videos: Tensor, token_indices: Tensor | None = None) -> Tensor:
        """Embed patches and add their positions, `(batch, tokens or picked, hidden_dim)`."""
        videos = self._with_time(videos)
        tokenizer = self.tokenizer(videos.shape)
        tokens = tokenizer(videos, token_indices)
        if self.modalities:
            is_image = tokenizer is self.image_embedding
            vector = self.image_vector if is_image else self.video_vector
            tokens = ops.add(tokens, ops.cast(vector, tokens.dtype))
        if self.position_embedding != "sincos":
            return tokens
        positions = self.positions(tokenizer.grid_shape(videos.shape))
        positions = ops.expand_dims(ops.cast(positions, tokens.dtype), 0)
        if token_indices is not None:
            positions = ops.take(positions[0], token_indices, axis=0)
        return ops.add(tokens, positions)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model as Keras does, once `token_indices` are known to be in the videos."""
        given = {**dict(zip(("videos", "token_indices"), args, strict=False)), **kwargs}
        self._check_tokens(given.get("videos"), given.get("token_indices"))
        return super().__call__(*args, **kwargs)

    def _check_tokens(self, videos: Any, token_indices: Tensor | None) -> None:
        """Check the numbers of tokens if the videos' size is known; Keras refuses other input."""
        if token_indices is None or len(getattr(videos, "shape", ())) < 4:
            return
        shape = self._with_time(videos).shape
        if None not in shape[1:]:
            num_tokens = math.prod(self.token_grid(shape))
            check_token_numbers(num_tokens, {"token_indices": token_indices})

    def call(
        self,
        videos: Tensor,
        token_indices: Tensor | None = None,
        padding_mask: Tensor | None = None,
        training: bool = False,
        norm: bool = True,
        hierarchical: bool = False,
    ) -> Tensor:
        if hierarchical and self.level_layers is None:
            raise ValueError("`level_layers` must be given for `hierarchical`. Received: None")
        x, rotations = self.embed(videos, token_indices), self.rotations(videos, token_indices)
        scales = self.branch_scales(self.num_layers, ops.shape(x)[0], training)
        start, levels = 0, []
        for layer in self.level_layers or () if hierarchical else (self.num_layers - 1,):
            own = slice(start, layer + 1)
            x = apply_blocks(
                self.blocks[own],
                x,
                padding_mask,
                rotations,
                self.remat,
                None if scales is None else scales[own],
            )
            levels.append(self.norm_of(layer)(x) if norm else x)
            start = layer + 1
        return ops.concatenate(levels, axis=-1) if len(levels) > 1 else levels[0]

    def norm_of(self, layer: int) -> TokenNorm:
        """Return the norm that the output of a block passes through.

        Args:
            layer: number of the block, from 0.

        Raises:
            ValueError: if levels have norms of their own, and the block is no level.
        """
        if self.level_layers is None or layer == self.num_layers - 1:
            return self.norm
        if layer not in self.level_layers:
            levels = ", ".join(map(str, self.level_layers))
            raise ValueError(
                f"`layers` must be of {levels}, the blocks that have a norm, unless `norm` is "
                f"False. Received: {layer}"
            )
        return self.lower_norms[self.level_layers.index(layer)]

    def layer_variables(self) -> list[list[keras.Variable]]:
        """List the variables of what comes before the blocks, then those of each block.

        They are for a learning rate that differs from layer to layer: see `layer_decay` of `AdamW`.
        None of the lists holds the final norm.
        """
        first = list(self.tubelet_embedding.variables)
        if self.modalities:
            first += [*self.image_embedding.variables, self.video_vector, self.image_vector]
        if self.position_embedding == "sincos":
            first.append(self.position_table)
        return [first, *(list(block.variables) for block in self.blocks)]

    def clip_tokens(self, clips: Tensor, training: bool = False, norm: bool = True) -> Tensor:
        """Return the tokens of clips, as tasks ask every backbone for them; see `TokenEncoder`.

        Args:
            clips: `(batch, frames, height, width, channels)`, also for an image model, which then
                encodes every frame by itself.
            training: whether the backbone is trained.
            norm: whether the final norm is applied.

        Returns:
            `(batch, tokens, hidden_dim)`, ordered by time.
        """
        if self.is_image_model:
            return frame_by_frame(clips, functools.partial(self, training=training, norm=norm))
        return self(clips, training=training, norm=norm)

    def intermediate_features(
        self,
        videos: Tensor,
        layers: Sequence[int],
        norm: bool = True,
        token_indices: Tensor | None = None,
        padding_mask: Tensor | None = None,
        training: bool = False,
    ) -> list[Tensor]:
        """Return the outputs of some blocks (App. D.2); no later block is computed.

        Args:
            videos: as in the call.
            layers: numbers of blocks, from 0, or backwards from -1, the last one; in any order.
            norm: whether each output passes through the final norm, or, if there are
                `level_layers`, through its own.
            token_indices: as in the call.
            padding_mask: as in the call.
            training: as in the call; `remat` counts as there, too.

        Returns:
            One `(batch, tokens, hidden_dim)` per entry of `layers`.

        Raises:
            ValueError: for a block that does not exist, and for pixels that the call refuses.

        Example:

        >>> import numpy as np
        >>> from keras_vjepa import VJEPABackbone
        >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=3, num_heads=2)
        >>> videos = np.zeros((1, 4, 32, 32, 3), "float32")
        >>> [tuple(x.shape) for x in backbone.intermediate_features(videos, [-1, 0], norm=False)]
        [(1, 8, 24), (1, 8, 24)]
        """
        wanted = places(self.num_layers, layers=layers)
        check_flag(norm=norm)
        for layer in wanted if norm else ():
            self.norm_of(layer)
        count = 1 + max(wanted, default=-1)
        states = self._states(videos, count, token_indices, padding_mask, training)
        outputs = {
            i - 1: self.norm_of(i - 1)(x) if norm else x
            for i, (x, *_) in enumerate(states)
            if i - 1 in wanted
        }
        return [outputs[i] for i in wanted]

    def attention_weights(
        self,
        videos: Tensor,
        layers: Sequence[int] = (-1,),
        queries: Sequence[int] | None = None,
        token_indices: Tensor | None = None,
        padding_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Return by how much tokens attend to each other in some blocks.

        Only these blocks compute the weights, in addition to their usual work. With 1568 tokens and
        16 heads, the weights of one block and clip take 157 MB; `queries` makes them fewer.

        Args:
            videos: as in the call.
            layers: numbers of blocks, from 0, or backwards from -1, the last one; in any order.
            queries: places, among the tokens that are encoded, of those whose attention is wanted,
                counted from 0, or backwards from -1; None for all.
            token_indices: as in the call.
            padding_mask: as in the call.

        Returns:
            One float32 `(batch, heads, queries, tokens)` per entry of `layers`; over the tokens
            they sum to one.

        Raises:
            ValueError: for a block or a token that does not exist, and for pixels that the call
                refuses.

        Example:

        >>> import numpy as np
        >>> from keras_vjepa import VJEPABackbone
        >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=3, num_heads=2)
        >>> videos = np.zeros((1, 4, 32, 32, 3), "float32")
        >>> [tuple(x.shape) for x in backbone.attention_weights(videos, [0, -1])]
        [(1, 2, 8, 8), (1, 2, 8, 8)]
        """
        wanted, weights = places(self.num_layers, layers=layers), {}
        states = self._states(videos, max(wanted, default=0), token_indices, padding_mask)
        for i, (x, padding, rotations) in enumerate(states):
            if i in wanted:
                chosen = None if queries is None else places(x.shape[1], queries=queries)
                weights[i] = self.blocks[i].attention_weights(x, padding, rotations, chosen)
        return [weights[i] for i in wanted]

    def _states(
        self,
        videos: Tensor,
        num_layers: int,
        token_indices: Tensor | None,
        padding_mask: Tensor | None,
        training: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None, Tensor | None]]:
        """Yield the embedded tokens, then the output of each of the first `num_layers` blocks.

        Each comes with the other inputs of a block: the padding mask and the rotations.
        """
        self.check_inputs(videos)
        self._check_tokens(videos, token_indices)
        if padding_mask is not None:
            padding_mask = ops.convert_to_tensor(padding_mask)
        x, rotations = self.embed(videos, token_indices), self.rotations(videos, token_indices)
        yield x, padding_mask, rotations
        scales = self.branch_scales(self.num_layers, ops.shape(x)[0], training)
        for number, block in enumerate(self.blocks[:num_layers]):
            own = None if scales is None else scales[number : number + 1]
            x = apply_blocks([block], x, padding_mask, rotations, self.remat, own)
            yield x, padding_mask, rotations

    def export_inputs(self) -> tuple[int, ...]:
        """Return the shape of the input: clips of the size that it is made for, or images."""
        return self.video_shape[1:] if self.is_image_model else self.video_shape

    def compute_output_shape(
        self,
        videos_shape: Sequence[int | None],
        token_indices_shape: Sequence[int | None] | None = None,
        padding_mask_shape: Sequence[int | None] | None = None,
    ) -> tuple[int | None, ...]:
        if len(videos_shape) == 4:
            videos_shape = (videos_shape[0], 1, *videos_shape[1:])
        return self.tokenizer(videos_shape).compute_output_shape(videos_shape, token_indices_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "num_frames": self.num_frames,
            "patch_size": self.patch_size,
            "tubelet_size": self.tubelet_size,
            "hidden_dim": self.hidden_dim,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "position_embedding": self.position_embedding,
            "uniform_power": self.uniform_power,
            "position_mode": self.position_mode,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "remat": self.remat,
            "num_channels": self.num_channels,
            "drop_path_rate": self.drop_path_rate,
            "position_reach": self.position_reach,
            "level_layers": self.level_layers,
            "modalities": self.modalities,
        }


def position_modes(position_embedding: str) -> tuple[str, ...]:
    """Return the values of `position_mode` that go with a `position_embedding`, the default first.

    Args:
        position_embedding: `"sincos"`, `"rotary"` or `"rotary_pairs"`.

    Raises:
        ValueError: if there is no such `position_embedding`.
    """
    check_choice(POSITION_EMBEDDINGS, position_embedding=position_embedding)
    return POSITION_MODES[position_embedding]


def _mode(position_embedding: str, position_mode: str | None) -> str:
    modes = position_modes(position_embedding)
    if position_mode is None:
        return modes[0]
    if position_mode not in modes:
        raise ValueError(
            f"`position_mode` must be {modes[0]!r} or {modes[1]!r} for `position_embedding`="
            f"{position_embedding!r}. Received: {position_mode!r}"
        )
    return position_mode
