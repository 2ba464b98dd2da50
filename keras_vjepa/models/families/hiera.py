"""Hiera: a hierarchical encoder of clips and images, in both of its releases (App. D.1)."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import arguments_of, check_flag, places
from keras_vjepa.backend.part_calls import call_part
from keras_vjepa.backend.step_functions import StepFunctions
from keras_vjepa.backend.token_ops import reordered
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.layers.dense import layer_norm, weight_initializer
from keras_vjepa.layers.embedding import TubeletEmbedding
from keras_vjepa.layers.hiera_block import HieraBlock, hiera_order
from keras_vjepa.layers.stochastic_depth import SkipsBranches
from keras_vjepa.models.adapters import frame_by_frame
from keras_vjepa.models.backbone import Size
from keras_vjepa.models.backbone_preset import BackbonePreset
from keras_vjepa.models.exporting import Exportable
from keras_vjepa.models.families.hiera_arguments import (
    NUM_STAGES,
    UNIT,
    hiera_grid,
    hiera_weights,
    stem,
)
from keras_vjepa.models.families.sized_backbone import Colour, SizedBackbone
from keras_vjepa.models.families.vision_backbone import IMAGENET, Facts
from keras_vjepa.models.lora import LowRankAdaptable
from keras_vjepa.models.pixels import PixelModel
from keras_vjepa.types import Tensor

# The number of levels of 2 x 2 cells in a mask unit, however many of them are pooled.
_LEVELS = NUM_STAGES - 1
_VIDEO_PIXELS = ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225))


@dataclasses.dataclass(frozen=True)
class HieraSize:
    """Holds width and depths of a released Hiera."""

    embed_dim: int
    embed_heads: int
    depths: tuple[int, int, int, int]


@keras.saving.register_keras_serializable("keras_vjepa")
class HieraBackbone(
    SizedBackbone,
    BackbonePreset,
    LowRankAdaptable,
    StepFunctions,
    PixelModel,
    SkipsBranches,
    TorchModule,
    Exportable,
):
    """Encode clips or images as Hiera does (facebookresearch/hiera).

    The masked autoencoders were trained with two pooling stages and fuse their stages; the
    fine-tuned models have three. The paper does not say what its probe got: `features` and
    `num_pools` choose. Inputs have one size, as in the authors' code.

    Args:
        image_size: height and width in pixels, multiples of 32; one int for squares.
        num_frames: frames of a clip, an even number; 1 for a model of images.
        embed_dim: width of the first stage; it doubles with each.
        embed_heads: attention heads of the first stage; they double too.
        depths: blocks of the four stages.
        num_pools: 2, as pretrained, or 3, as fine-tuned.
        fusion: whether there are the heads and the norm that fuse the stages of a masked
            autoencoder.
        final_norm: whether there is the norm of a fine-tuned model.
        features: `"last"` for the last stage, or `"fused"`.
        layer_norm_epsilon: of every norm.
        num_channels: colour channels.
        drop_path_rate: as in `VJEPABackbone`.

    Call arguments:
        videos: float `(batch, frames, height, width, channels)`, normalised; models of images take
            `(batch, height, width, channels)` too.
        norm: whether the final norm counts, of a model that has one.

    Returns:
        `(batch, tokens, 8 * embed_dim)`, ordered by time, then row, then column.

    Raises:
        ValueError: for arguments out of range, and pixels of another size.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa.models import HieraBackbone
    >>> backbone = HieraBackbone(32, 2, embed_dim=4, embed_heads=1, depths=(1, 1, 1, 1))
    >>> tuple(backbone(np.zeros((1, 2, 32, 32, 3), "float32")).shape)
    (1, 1, 32)
    """

    input_shapes: ClassVar[str] = "one"
    sizes: ClassVar = {
        "base": HieraSize(96, 1, (2, 3, 16, 3)),
        "base_plus": HieraSize(112, 2, (2, 3, 16, 3)),
        "large": HieraSize(144, 2, (2, 6, 36, 4)),
        "huge": HieraSize(256, 4, (2, 6, 36, 4)),
    }

    def __init__(
        self,
        image_size: Size = 224,
        num_frames: int = 16,
        embed_dim: int = 96,
        embed_heads: int = 1,
        depths: Sequence[int] = (2, 3, 16, 3),
        num_pools: int = 3,
        fusion: bool = False,
        final_norm: bool = False,
        features: str = "last",
        layer_norm_epsilon: float = 1e-6,
        num_channels: int = 3,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        # This copies all arguments by their names.
        hiera_weights(locals())
        super().__init__(**kwargs)
        self.image_size = image_size if isinstance(image_size, int) else (*image_size,)
        self.num_frames = num_frames
        self.embed_dim = embed_dim
        self.embed_heads = embed_heads
        self.depths = (*depths,)
        self.num_pools = num_pools
        self.fusion = fusion
        self.final_norm = final_norm
        self.features = features
        self.layer_norm_epsilon = layer_norm_epsilon
        self.num_channels = num_channels
        self.drop_path_rate = drop_path_rate
        # Tasks read these attributes of a backbone; they describe the last stage.
        self.hidden_dim = embed_dim * 2 ** (NUM_STAGES - 1)
        self.num_heads = embed_heads * 2 ** (NUM_STAGES - 1)
        self.num_layers = sum(depths)
        self.tubelet_size = stem(num_frames)[1][0]
        self.build((None, *self.video_shape))

    # --- Weights ---------------------------------------------------------------------------------

    def build(self, videos_shape: Sequence[int | None]) -> None:
        if self.built:
            return
        self.patch_grid = hiera_grid({"image_size": self.image_size, "num_frames": self.num_frames})
        time, rows, columns = self.patch_grid
        kernel = (*stem(self.num_frames)[0], self.num_channels, self.embed_dim)
        self.patch_kernel = self.add_weight(kernel, weight_initializer(), name="patch_kernel")
        self.patch_bias = self.add_weight((self.embed_dim,), "zeros", name="patch_bias")
        shape = (rows * columns, self.embed_dim)
        self.spatial_table = self.add_weight(shape, weight_initializer(), name="spatial_table")
        if not self.is_image_model:
            shape = (time, self.embed_dim)
            self.temporal_table = self.add_weight(
                shape, weight_initializer(), name="temporal_table"
            )
        self.blocks = [*self._blocks()]
        self.norm = self._norm("norm") if self.final_norm else None
        self.fusion_norm = self._norm("fusion_norm") if self.fusion else None
        self.fusion_heads = [*self._fusion_heads()] if self.fusion else []
        self.restore_layer_states()

    def _norm(self, name: str) -> Any:
        norm = layer_norm(self.layer_norm_epsilon, name, self.dtype_policy)
        norm.build((None, None, self.hidden_dim))
        return norm

    def _blocks(self) -> Iterator[HieraBlock]:
        time, rows, columns = self.patch_grid
        num_windows = time * (rows // UNIT) * (columns // UNIT)
        before = self.embed_dim
        for stage, depth in enumerate(self.depths):
            width = self.embed_dim * 2**stage
            for number in range(depth):
                is_first = stage > 0 and number == 0
                # The first block of a stage attends in the same way as the stage before.
                is_local = stage - is_first < 2
                block = HieraBlock(
                    width,
                    self.embed_heads * 2**stage,
                    num_windows if is_local else 0,
                    is_first and stage <= self.num_pools,
                    self.layer_norm_epsilon,
                    name=f"block_{sum(self.depths[:stage]) + number}",
                    dtype=self.dtype_policy,
                )
                block.build((None, None, before))
                before = width
                yield block

    def _fusion_heads(self) -> Iterator[TubeletEmbedding]:
        """Make what brings the first two stages to the size and width of the last."""
        for stage in (0, 1):
            head = TubeletEmbedding(
                self.hidden_dim,
                2 ** (self.num_pools - stage),
                1,
                name=f"fusion_head_{stage}",
                dtype=self.dtype_policy,
            )
            head.build((None, None, None, None, self.embed_dim * 2**stage))
            yield head

    @classmethod
    def arguments_of_size(cls, size: str) -> dict[str, Any]:
        """Name the constructor arguments of one of `sizes`."""
        return dataclasses.asdict(cls.sizes[size])

    @classmethod
    def number_of_weights(cls, **arguments: Any) -> int:
        """Do as `SizedBackbone.number_of_weights`."""
        return hiera_weights(arguments_of(cls, arguments))

    # --- Sizes -----------------------------------------------------------------------------------

    @property
    def facts(self) -> Facts:
        """Tell how pixels are normalised; clips in another way than images.

        The authors' notebook has 0.255 for the third deviation of clips, most likely a slip.
        """
        return self.facts_of(self.num_frames)

    @staticmethod
    def facts_of(num_frames: int) -> Facts:
        """Return `facts` of a model of clips of so many frames, or of images."""
        mean, std = IMAGENET if num_frames == 1 else _VIDEO_PIXELS
        return Facts(is_image_model=num_frames == 1, mean=mean, std=std)

    @classmethod
    def colours_of(cls, config: Mapping[str, Any]) -> dict[str, Colour]:
        """Do as `SizedBackbone.colours_of`."""
        facts = cls.facts_of(config.get("num_frames", 16))
        return {"mean": facts.mean, "std": facts.std}

    @property
    def is_image_model(self) -> bool:
        """Tell whether the backbone encodes single images."""
        return self.num_frames == 1

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Return the token grid of what comes out: time, row and column."""
        return self._grid(NUM_STAGES - 1)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens that come out."""
        return math.prod(self.grid_shape)

    def _grid(self, stage: int) -> tuple[int, int, int]:
        time, rows, columns = self.patch_grid
        cell = 2 ** min(stage, self.num_pools)
        return time, rows // cell, columns // cell

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Check the shape of videos, or of images, as far as it is known.

        Raises:
            ValueError: for another than the model is made for.
        """
        if self.is_image_model and len(shape) == 4:
            shape = (shape[0], 1, *shape[1:])
        pairs = [*zip(shape[1:], self.video_shape, strict=False)]
        if len(shape) != 5 or any(size not in (own, None) for size, own in pairs):
            raise ValueError(
                f"`videos` must be (batch, {', '.join(map(str, self.video_shape))}), the one size "
                f"of this model. Received shape: {tuple(shape)}"
            )

    def table_for(self, new: Self) -> tuple[Tensor, str] | None:
        """Do as `VisionBackbone.table_for`; the family has no rule for another size."""
        raise ValueError(
            f"`image_size` and `num_frames` must be those of the weights in this family, "
            f"{self.image_size} and {self.num_frames}. "
            f"Received: {new.image_size} and {new.num_frames}"
        )

    # --- Tokens ----------------------------------------------------------------------------------

    def embed(self, videos: Tensor) -> Tensor:
        """Embed overlapping patches and add positions, `(batch, tokens, embed_dim)`, in order."""
        x = ops.convert_to_tensor(videos)
        x = ops.expand_dims(x, 1) if len(x.shape) == 4 else x
        x = ops.cast(x, self.compute_dtype)
        kernel, strides = stem(self.num_frames)
        # The margins are padded explicitly, because "same" pads differently with this stride.
        margins = [(0, 0), *((n // 2, n // 2) for n in kernel), (0, 0)]
        weights = ops.cast(ops.convert_to_tensor(self.patch_kernel), x.dtype)
        x = ops.conv(ops.pad(x, margins), weights, strides=strides, padding="valid")
        x = ops.reshape(x, (-1, math.prod(self.patch_grid), self.embed_dim))
        bias = ops.cast(ops.convert_to_tensor(self.patch_bias), x.dtype)
        return x + bias + ops.cast(self._positions(), x.dtype)

    def _positions(self) -> Tensor:
        spatial = ops.convert_to_tensor(self.spatial_table)
        if self.is_image_model:
            return spatial
        temporal = ops.convert_to_tensor(self.temporal_table)
        table = ops.expand_dims(temporal, 1) + ops.expand_dims(spatial, 0)
        return ops.reshape(table, (-1, self.embed_dim))

    def in_order(self, tokens: Tensor, stage: int) -> Tensor:
        """Put tokens of a stage from the network's order into that of time, row and column."""
        order = hiera_order(self._grid(stage), _LEVELS - min(stage, self.num_pools))
        return reordered(tokens, np.argsort(order))

    def block_outputs(self, videos: Tensor, training: bool = False) -> Iterator[Tensor]:
        """Yield what comes out of each block, in the network's order."""
        x = reordered(self.embed(videos), hiera_order(self.patch_grid, _LEVELS))
        scales = self.branch_scales(self.num_layers, ops.shape(x)[0], training)
        for number, block in enumerate(self.blocks):
            x = call_part(block, x, None if scales is None else scales[number])
            yield x

    def stage_outputs(self, videos: Tensor, training: bool = False) -> list[Tensor]:
        """Compute the outputs of the four stages.

        Args:
            videos: as in the call.
            training: whether `drop_path_rate` takes effect.

        Returns:
            `(batch, tokens of the stage, its width)` each, ordered by time, row and column.
        """
        ends = np.cumsum(self.depths) - 1
        outputs = [
            x for number, x in enumerate(self.block_outputs(videos, training)) if number in ends
        ]
        return [self.in_order(x, stage) for stage, x in enumerate(outputs)]

    def call(self, videos: Tensor, training: bool = False, norm: bool = True) -> Tensor:
        if self.features == "fused":
            return self.fused(self.stage_outputs(videos, training))
        *_, x = self.block_outputs(videos, training)
        x = self.in_order(x, NUM_STAGES - 1)
        return self.norm(x) if norm and self.norm is not None else x

    def fused(self, stages: Sequence[Tensor]) -> Tensor:
        """Join the stages as a masked autoencoder does: norm of the first, second and last's sum.

        Args:
            stages: of `stage_outputs`.

        Returns:
            `(batch, tokens, 8 * embed_dim)`.
        """
        total = stages[-1]
        for stage, head in enumerate(self.fusion_heads):
            x = stages[stage]
            total = total + head(ops.reshape(x, (-1, *self._grid(stage), x.shape[-1])))
        assert self.fusion_norm is not None
        return self.fusion_norm(total)

    def clip_tokens(self, clips: Tensor, training: bool = False, norm: bool = True) -> Tensor:
        """Do as `VisionBackbone.clip_tokens`."""
        encode = functools.partial(self, training=training, norm=norm)
        if not self.is_image_model:
            return encode(clips)
        return frame_by_frame(clips, encode, training)

    def intermediate_features(
        self,
        videos: Tensor,
        layers: Sequence[int],
        norm: bool = True,
        training: bool = False,
    ) -> list[Tensor]:
        """Return the outputs of some blocks, each in order of time, row and column.

        Args:
            videos: as in the call.
            layers: block numbers from 0, or from -1 for the last one backwards.
            norm: pass those of the last stage through the final norm, if there is one.
            training: as in the call.

        Returns:
            One `(batch, tokens, width)` per entry of `layers`; both differ from stage to stage.
        """
        wanted = places(self.num_layers, layers=layers)
        check_flag(norm=norm)
        self.check_inputs(videos)
        ends, outputs = np.cumsum(self.depths), {}
        for number, x in enumerate(self.block_outputs(videos, training)):
            if number in wanted:
                stage = int(np.searchsorted(ends, number, side="right"))
                x = self.in_order(x, stage)
                is_last = stage == NUM_STAGES - 1 and self.norm is not None
                outputs[number] = self.norm(x) if norm and is_last else x  # type: ignore[misc]
        return [outputs[number] for number in wanted]

    def layer_variables(self) -> list[list[keras.Variable]]:
        """Do as `VJEPABackbone.layer_variables`."""
        first = [self.patch_kernel, self.patch_bias, self.spatial_table]
        first += [] if self.is_image_model else [self.temporal_table]
        return [first, *(list(block.variables) for block in self.blocks)]

    def export_inputs(self) -> tuple[int, ...]:
        """Do as `Exportable.export_inputs`."""
        return self.video_shape[1:] if self.is_image_model else self.video_shape

    def compute_output_shape(self, videos_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return videos_shape[0], self.num_tokens, self.hidden_dim

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "num_frames": self.num_frames,
            "embed_dim": self.embed_dim,
            "embed_heads": self.embed_heads,
            "depths": self.depths,
            "num_pools": self.num_pools,
            "fusion": self.fusion,
            "final_norm": self.final_norm,
            "features": self.features,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "num_channels": self.num_channels,
            "drop_path_rate": self.drop_path_rate,
        }
