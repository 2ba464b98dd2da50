"""One vision transformer for the encoders that V-JEPA is compared with (Tables 5 and 6; App. D.1).

All but Hiera are the same pre-norm network with switches. A family is a subclass that states its
`Facts` and makes its positions. What a backbone returns goes to the probe: the tokens of patches
after the final norm. The paper does not say whether it took them before that norm or with the class
token; `norm=False` and `with_class_token=True` do.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import arguments_of, check_flag, places
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.dense import layer_norm, weight_initializer
from keras_vjepa.layers.embedding import TubeletEmbedding
from keras_vjepa.layers.stochastic_depth import SkipsBranches
from keras_vjepa.layers.transformer import apply_blocks
from keras_vjepa.layers.vision_block import VisionBlock
from keras_vjepa.models.adapters import frame_by_frame
from keras_vjepa.models.backbone import EncoderSize, Size
from keras_vjepa.models.backbone_preset import BackbonePreset
from keras_vjepa.models.exporting import Exportable
from keras_vjepa.models.families.sized_backbone import Colour, SizedBackbone
from keras_vjepa.models.families.vision_arguments import check_square, completed, vision_weights
from keras_vjepa.models.lora import LowRankAdaptable
from keras_vjepa.models.pixels import PixelModel
from keras_vjepa.types import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class Facts:
    """Holds what is the same in all models of a family.

    Attributes:
        is_image_model: whether it takes images rather than clips.
        activations: of its MLPs, the usual one first.
        layer_norm_epsilon: of every norm.
        patch_bias: whether the projection of patches has a bias.
        class_token: whether a learned token precedes the patches.
        registers: whether there may be register tokens behind it.
        input_norm: whether a norm precedes the blocks.
        key_bias: whether the keys have a bias.
        layer_scale: whether the branches of blocks are scaled.
        may_lack_norm: whether there are weights without a final norm.
        stores_table: whether positions are among the weights.
        trains_table: whether they are learned.
        projects: whether the class token may be projected to an embedding.
        interpolates: whether how the table is stretched differs between its models.
        mean: of red, green and blue, that pixels in [0, 1] are normalised with.
        std: of red, green and blue.
    """

    is_image_model: bool = False
    activations: tuple[str, ...] = ("gelu",)
    layer_norm_epsilon: float = 1e-6
    patch_bias: bool = True
    class_token: bool = False
    registers: bool = False
    input_norm: bool = False
    key_bias: bool = True
    layer_scale: bool = False
    may_lack_norm: bool = False
    stores_table: bool = True
    trains_table: bool = False
    projects: bool = False
    interpolates: bool = False
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]


class VisionBackbone(
    SizedBackbone,
    BackbonePreset,
    LowRankAdaptable,
    StepFunctions,
    PixelModel,
    SkipsBranches,
    TorchModule,
    Exportable,
):
    """Encode clips or images with a vision transformer of another family than V-JEPA.

    Args:
        image_size: height and width in pixels, one int for squares.
        num_frames: frames of a clip; None for 16, or 1 for a family of image models.
        patch_size: height and width of a patch in pixels.
        tubelet_size: frames in a patch; None for 2, or 1 for a family of image models.
        hidden_dim: width of a token.
        num_layers: transformer blocks.
        num_heads: attention heads; must divide `hidden_dim`.
        mlp_dim: width of the MLP's hidden layer; None for four times `hidden_dim`.
        activation: of the MLP; see `VisionBlock`. None for the family's usual one.
        layer_norm_epsilon: of every norm; None for the family's.
        final_norm: whether there is a norm after the blocks.
        num_register_tokens: learned tokens behind the class token.
        with_class_token: whether the class token is returned too, before the others.
        projection_dim: width of CLIP's image embedding; None for a tower without.
        interpolate_offset: of DINOv2; None for 0.1, or 0 with registers, as released. Added to the
            number of patches along an axis before it is divided by the table's, which gives the
            factor that the table is stretched by.
        interpolate_antialias: of DINOv2: whether the table is stretched with antialiasing; None for
            False, or True with registers, as released.
        num_channels: colour channels.
        drop_path_rate: as in `VJEPABackbone`.
        remat: as in `VJEPABackbone`.

    Call arguments:
        videos: float `(batch, frames, height, width, channels)`, normalised with the family's own
            numbers; image models take `(batch, height, width, channels)` too.
        norm: whether the final norm counts.

    Returns:
        `(batch, tokens, hidden_dim)`: of patches, ordered by time, then row, then column.

    Raises:
        ValueError: for arguments out of range, or that the family does not have.
    """

    facts: ClassVar[Facts]
    sizes: ClassVar[Mapping[str, EncoderSize]]

    def __init__(
        self,
        image_size: Size = 224,
        num_frames: int | None = None,
        patch_size: int = 16,
        tubelet_size: int | None = None,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        mlp_dim: int | None = None,
        activation: str | None = None,
        layer_norm_epsilon: float | None = None,
        final_norm: bool = True,
        num_register_tokens: int = 0,
        with_class_token: bool = False,
        projection_dim: int | None = None,
        interpolate_offset: float | None = None,
        interpolate_antialias: bool | None = None,
        num_channels: int = 3,
        drop_path_rate: float = 0.0,
        remat: bool = False,
        **kwargs: Any,
    ) -> None:
        # This copies all arguments by their names.
        own = self.checked(locals())
        super().__init__(**kwargs)
        self.image_size = image_size if isinstance(image_size, int) else (*image_size,)
        self.num_frames = own["num_frames"]
        self.patch_size = patch_size
        self.tubelet_size = own["tubelet_size"]
        self.hidden_dim = hidden_dim
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.mlp_dim = own["mlp_dim"]
        self.activation = own["activation"]
        self.layer_norm_epsilon = own["layer_norm_epsilon"]
        self.final_norm = final_norm
        self.num_register_tokens = num_register_tokens
        self.with_class_token = with_class_token
        self.projection_dim = projection_dim
        self.interpolate_offset = own["interpolate_offset"]
        self.interpolate_antialias = own["interpolate_antialias"]
        self.num_channels = num_channels
        self.drop_path_rate = drop_path_rate
        self.remat = remat
        self.build((None, *self.video_shape))

    @classmethod
    def checked(cls, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Complete and check constructor arguments.

        Args:
            arguments: all of them, by name; others are left out.

        Raises:
            ValueError: for the first that is out of range.
        """
        own = completed(cls.facts, arguments)
        vision_weights(cls.facts, own)
        cls.check_grid(own)
        return own

    @classmethod
    def check_grid(cls, arguments: Mapping[str, Any]) -> None:
        """Check sizes for which the family has no positions; here, there are none."""

    # --- Weights ---------------------------------------------------------------------------------

    def build(self, videos_shape: Sequence[int | None]) -> None:
        if self.built:
            return
        facts, policy = self.facts, self.dtype_policy
        tokens_shape = (None, None, self.hidden_dim)
        self.tubelet_embedding = TubeletEmbedding(
            self.hidden_dim,
            self.patch_size,
            self.tubelet_size,
            facts.patch_bias,
            name="tubelet_embedding",
            dtype=policy,
        )
        self.grid_shape = self.tubelet_embedding.grid_shape(videos_shape)
        self.tubelet_embedding.build(videos_shape)
        self._build_tokens()
        self.input_norm = self._norm("input_norm") if facts.input_norm else None
        self.blocks = [self._block(i) for i in range(self.num_layers)]
        for block in self.blocks:
            block.build(tokens_shape)
        self.norm = self._norm("norm") if self.final_norm else None
        self.restore_layer_states()

    def _build_tokens(self) -> None:
        """Make class token, its projection, registers and position table."""

        def learned(rows: int, name: str) -> Any:
            return self.add_weight((rows, self.hidden_dim), weight_initializer(), name=name)

        if self.projection_dim is not None:
            shape = (self.hidden_dim, self.projection_dim)
            self.projection = self.add_weight(shape, weight_initializer(), name="projection")
        if self.facts.class_token:
            self.class_token = learned(1, "class_token")
        if self.num_register_tokens:
            self.register_tokens = learned(self.num_register_tokens, "register_tokens")
        if self.facts.trains_table:
            self.position_table = learned(
                math.prod(self.grid_shape) + self.facts.class_token, "position_table"
            )
        elif self.facts.stores_table:
            table = self.fresh_table(self.grid_shape)
            self.position_table = self.add_weight(
                shape=table.shape, initializer="zeros", trainable=False, name="position_table"
            )
            self.position_table.assign(table)

    def _norm(self, name: str) -> Any:
        norm = layer_norm(self.layer_norm_epsilon, name, self.dtype_policy)
        norm.build((None, None, self.hidden_dim))
        return norm

    def _block(self, number: int) -> VisionBlock:
        return VisionBlock(
            self.num_heads,
            self.mlp_dim,
            self.layer_norm_epsilon,
            self.activation,
            self.facts.key_bias,
            self.facts.layer_scale,
            name=f"block_{number}",
            dtype=self.dtype_policy,
        )

    @classmethod
    def arguments_of_size(cls, size: str) -> dict[str, Any]:
        """Name the constructor arguments of one of `sizes`."""
        of_size = dataclasses.asdict(cls.sizes[size])
        mlp_dim = round(of_size.pop("mlp_ratio") * of_size["hidden_dim"])
        return {**of_size, "mlp_dim": mlp_dim}

    @classmethod
    def number_of_weights(cls, **arguments: Any) -> int:
        """Do as `SizedBackbone.number_of_weights`."""
        own = cls.checked(arguments_of(cls, arguments))
        return vision_weights(cls.facts, own)

    @classmethod
    def colours_of(cls, config: Mapping[str, Any]) -> dict[str, Colour]:
        """Do as `SizedBackbone.colours_of`."""
        return {"mean": cls.facts.mean, "std": cls.facts.std}

    # --- Sizes -----------------------------------------------------------------------------------

    @property
    def is_image_model(self) -> bool:
        """Tell whether the backbone encodes single images."""
        return self.facts.is_image_model

    @property
    def num_tokens(self) -> int:
        """Return the number of patches of a clip of the size that the backbone was made for."""
        return math.prod(self.grid_shape)

    @property
    def num_prefix_tokens(self) -> int:
        """Return the number of tokens before the patches: class token and registers."""
        return self.facts.class_token + self.num_register_tokens

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Check the shape of videos, or of images for a model of images, as far as it is known.

        Raises:
            ValueError: for other axes, sizes that the patches do not divide, several frames for a
                model of images, and for a rectangle in a family of squares.
        """
        is_image = self.is_image_model and len(shape) == 4
        self.tubelet_embedding.check_shape((shape[0], 1, *shape[1:]) if is_image else shape)
        # Without this, a single position would be added to the patches of all frames.
        if self.is_image_model and not is_image and shape[1] not in (1, None):
            raise ValueError(
                "`videos` must be images, or clips of one frame, in this family; `clip_tokens` "
                f"encodes each frame of longer clips. Received shape: {tuple(shape)}"
            )
        if self.input_shapes == "squares" and None not in shape[-3:-1]:
            check_square((1, *shape[-3:-1]), shape[-3:-1])  # type: ignore[arg-type]

    def with_time(self, videos: Tensor) -> Tensor:
        """Give images an axis of frames."""
        is_image = self.is_image_model and len(videos.shape) == 4
        return ops.expand_dims(videos, 1) if is_image else videos

    # --- Positions -------------------------------------------------------------------------------

    def fresh_table(self, grid_shape: tuple[int, int, int]) -> np.ndarray:
        """Make the table of a family whose positions are not learned, `(tokens, hidden_dim)`."""
        raise NotImplementedError

    def positions(self, grid_shape: tuple[int, int, int]) -> Tensor:
        """Return the positions of a token grid, by the family's rule.

        Returns:
            `(tokens, hidden_dim)`, with a first row for the class token if there is one.

        Raises:
            ValueError: for a grid that the family has no positions for.
        """
        if self.facts.stores_table and grid_shape == self.grid_shape:
            return ops.convert_to_tensor(self.position_table)
        return ops.convert_to_tensor(self.fresh_table(grid_shape))

    def table_for(self, new: "VisionBackbone") -> tuple[Tensor, str] | None:
        """Return what another size's `position_table` is, and how it came about; None without."""
        if not self.facts.stores_table:
            return None
        verb = "were stretched" if self.facts.trains_table else "were made anew"
        return self.positions(new.grid_shape), verb

    # --- Tokens ----------------------------------------------------------------------------------

    def embed(self, videos: Tensor) -> Tensor:
        """Embed patches, add positions, and put class token and registers in front of them.

        Returns:
            `(batch, prefix + tokens, hidden_dim)`.
        """
        videos = self.with_time(videos)
        tokens = self.tubelet_embedding(videos)
        positions = self.positions(self.tubelet_embedding.grid_shape(videos.shape))
        positions = ops.expand_dims(ops.cast(positions, tokens.dtype), 0)
        if not self.facts.class_token:
            return ops.add(tokens, positions)
        batch = ops.shape(tokens)[0]
        class_token = ops.cast(ops.convert_to_tensor(self.class_token), tokens.dtype)
        first = [_repeated(class_token + positions[0, :1], batch)]
        if self.num_register_tokens:
            registers = ops.cast(ops.convert_to_tensor(self.register_tokens), tokens.dtype)
            first.append(_repeated(registers, batch))
        return ops.concatenate([*first, tokens + positions[:, 1:]], axis=1)

    def call(self, videos: Tensor, training: bool = False, norm: bool = True) -> Tensor:
        x = self.embed(videos)
        if self.input_norm is not None:
            x = self.input_norm(x)
        scales = self.branch_scales(self.num_layers, ops.shape(x)[0], training)
        x = self._chosen(apply_blocks(self.blocks, x, remat=self.remat, branch_scales=scales))
        return self.norm(x) if norm and self.norm is not None else x

    def _chosen(self, tokens: Tensor) -> Tensor:
        """Take what is returned of all tokens."""
        patches = tokens[:, self.num_prefix_tokens :]
        if not self.with_class_token:
            return patches if self.num_prefix_tokens else tokens
        if not self.num_register_tokens:
            return tokens
        return ops.concatenate([tokens[:, :1], patches], axis=1)

    def clip_tokens(self, clips: Tensor, training: bool = False, norm: bool = True) -> Tensor:
        """Return the tokens of clips, as tasks ask every backbone for them; see `TokenEncoder`.

        Args:
            clips: `(batch, frames, height, width, channels)`; an image model encodes every frame by
                itself.
            training: whether the backbone is trained.
            norm: whether the final norm counts.

        Returns:
            `(batch, tokens, hidden_dim)`, ordered by time.
        """
        encode = functools.partial(self, training=training, norm=norm)
        if not self.is_image_model:
            return encode(clips)
        return frame_by_frame(clips, encode, training)

    def intermediate_features(
        self,
        videos: Tensor,
        layers: Sequence[int],
        norm: bool = True,
        all_tokens: bool = False,
        training: bool = False,
    ) -> list[Tensor]:
        """Return the outputs of some blocks (App. D.2); no later block is computed.

        Args:
            videos: as in the call.
            layers: block numbers from 0, or from -1 for the last one backwards, in any order.
            norm: pass each through the final norm, if there is one.
            all_tokens: with class token and registers, whatever the call returns.
            training: as in the call.

        Returns:
            One `(batch, tokens, hidden_dim)` per entry of `layers`.

        Raises:
            ValueError: for a block that does not exist, and pixels as in the call.
        """
        wanted = places(self.num_layers, layers=layers)
        check_flag(norm=norm, all_tokens=all_tokens)
        outputs, count = {}, max(wanted, default=-1) + 1
        for number, x in enumerate(self._states(videos, count, training)):
            if number in wanted:
                x = x if all_tokens else self._chosen(x)
                outputs[number] = self.norm(x) if norm and self.norm is not None else x
        return [outputs[number] for number in wanted]

    def attention_weights(
        self, videos: Tensor, layers: Sequence[int] = (-1,), queries: Sequence[int] | None = None
    ) -> list[Tensor]:
        """Return by how much tokens attend to each other in some blocks.

        Args:
            videos: as in the call.
            layers: numbers of blocks, from 0, or backwards from -1, the last one; in any order.
            queries: places of the tokens whose attention is wanted, counted from 0 with class token
                and registers in front, or backwards from -1; None for all.

        Returns:
            One float32 `(batch, heads, queries, tokens)` per entry of `layers`, with class token
            and registers; over the tokens they sum to one.

        Raises:
            ValueError: for a block or a token that does not exist, and pixels as in the call.
        """
        wanted, weights = places(self.num_layers, layers=layers), {}
        for number, x in enumerate(self._inputs_of_blocks(videos, max(wanted, default=0))):
            if number in wanted:
                chosen = None if queries is None else places(x.shape[1], queries=queries)
                weights[number] = self.blocks[number].attention_weights(x, queries=chosen)
        return [weights[number] for number in wanted]

    def _states(self, videos: Tensor, num_layers: int, training: bool) -> Iterator[Tensor]:
        """Yield all tokens as they come out of each of the first `num_layers` blocks."""
        return itertools.islice(self._inputs_of_blocks(videos, num_layers, training), 1, None)

    def _inputs_of_blocks(
        self, videos: Tensor, num_layers: int, training: bool = False
    ) -> Iterator[Tensor]:
        """Yield all tokens before the first block, then after each of the first `num_layers`."""
        self.check_inputs(videos)
        x = self.embed(videos)
        if self.input_norm is not None:
            x = self.input_norm(x)
        yield x
        scales = self.branch_scales(self.num_layers, ops.shape(x)[0], training)
        for number, block in enumerate(self.blocks[:num_layers]):
            own = None if scales is None else scales[number : number + 1]
            x = apply_blocks([block], x, remat=self.remat, branch_scales=own)
            yield x

    def layer_variables(self) -> list[list[keras.Variable]]:
        """Do as `VJEPABackbone.layer_variables`."""
        names = ("class_token", "register_tokens", "position_table")
        own = [getattr(self, name) for name in names if hasattr(self, name)]
        norm = [] if self.input_norm is None else list(self.input_norm.variables)
        first = [*self.tubelet_embedding.variables, *own, *norm]
        return [first, *(list(block.variables) for block in self.blocks)]

    def export_inputs(self) -> tuple[int, ...]:
        """Do as `Exportable.export_inputs`."""
        return self.video_shape[1:] if self.is_image_model else self.video_shape

    def compute_output_shape(self, videos_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        if len(videos_shape) == 4:
            videos_shape = (videos_shape[0], self.tubelet_size, *videos_shape[1:])
        batch, tokens, dim = self.tubelet_embedding.compute_output_shape(videos_shape)
        more = self.facts.class_token and self.with_class_token
        return batch, None if tokens is None else tokens + more, dim

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
            "mlp_dim": self.mlp_dim,
            "activation": self.activation,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "final_norm": self.final_norm,
            "num_register_tokens": self.num_register_tokens,
            "with_class_token": self.with_class_token,
            "projection_dim": self.projection_dim,
            "interpolate_offset": self.interpolate_offset,
            "interpolate_antialias": self.interpolate_antialias,
            "num_channels": self.num_channels,
            "drop_path_rate": self.drop_path_rate,
            "remat": self.remat,
        }


def _repeated(tokens: Tensor, batch: Any) -> Tensor:
    """Give each sample the same tokens."""
    return ops.broadcast_to(ops.expand_dims(tokens, 0), (batch, *tokens.shape))
