"""Detect what people in boxes do, from frozen or trained features (App. D.2, Table 11).

The outputs of four layers are concatenated over their channels and averaged over time. Features of
boxes are pooled from this map, and a linear layer has an output with a sigmoid for each action.

Departures from the paper's text: the paper counts layers from 1 (18, 20, 22, 24 of ViT-L); here
they are counted from 0, as in the authors' encoder, which passes each output through its final
norm.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import arguments_of, check_flag, check_whole, places
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.backend.train_step import TrainableModel
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.layers.rematerialization import DrawsInTraining
from keras_vjepa.models.adapters import TokenEncoder, as_token_encoder
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.models.exporting import Exportable
from keras_vjepa.models.families import HieraBackbone, RivalBackbone, VisionBackbone
from keras_vjepa.models.frozen import is_trained, set_trainable
from keras_vjepa.models.pixels import PixelModel
from keras_vjepa.presets.claims import weights_asked_for
from keras_vjepa.presets.preprocessing import Preprocessor
from keras_vjepa.tasks.classification import check_classes, check_preprocessor, loss_of_logits
from keras_vjepa.tasks.classifier_preset import PROBE_FILE, ClassifierPreset
from keras_vjepa.tasks.compiled import CompiledTask
from keras_vjepa.tasks.detection_head import DetectionHead
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.types import Tensor

# The paper's layers for ViT-L and ViT-H, by the number of the encoder's layers.
_LAYERS = {24: (17, 19, 21, 23), 32: (25, 27, 29, 31)}
_NUM_LAYERS = 4
# The patch size if a backbone does not state one.
_PATCH_SIZE = 16
# The default learning rate, for a frozen backbone as for a trained one (Table 11).
_LEARNING_RATE = 1e-4
_HEAD_ARGUMENTS = (
    "num_classes", "output_size", "sampling_ratio", "aligned", "pooling", "dropout",
)  # fmt: skip

Detection = list[tuple[str | int, float]]


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPAActionDetector(
    DrawsInTraining,
    ClassifierPreset,
    KeepsLayerStates,
    PixelModel,
    CompiledTask,
    TrainableModel,
    TorchModule,
    Exportable,
):
    """Tells what is done in boxes of a video, by a backbone and a linear layer (App. D.2).

    Something else has to find the boxes. The detector is compiled with a cross-entropy of each
    action on logits, and `AdamW`, unless `compile` is called again.

    Args:
        backbone: any Keras model that returns `(batch, tokens, dim)`; see
            `keras_vjepa.models.adapters`. A backbone that takes single images is applied to every
            frame.
        num_classes: number of actions; may be left out with `class_names`.
        layers: numbers of the layers whose outputs are concatenated, from 0, or from -1 backwards.
            None for the paper's: 17, 19, 21 and 23 of 24 layers, 25, 27, 29 and 31 of 32; else the
            last four; of V-JEPA 2.1, its levels. Of a backbone that is no `VJEPABackbone` or
            `VisionBackbone`, only the output is taken.
        output_size: bins of a box along height and width; this and the next two are as in
            `RoIAlign`.
        sampling_ratio: samples of a bin along each axis; 0 for as many as it covers cells.
        aligned: whether positions begin at the edge of the first cell, not at its centre.
        pooling: how the bins of a box are pooled: `"max"` or `"average"`.
        dropout: share of the channels of a box that training leaves out.
        trainable_backbone: False freezes the backbone, True leaves it as it is, or unfreezes it if
            its `trainable` is False. None freezes a backbone without LoRA.
        class_names: names of the actions in the order of their numbers; `detect` returns them.
        preprocessor: a `VJEPAVideoPreprocessor`, through which `detect` takes files; saved and
            loaded with the model. `from_preset` finds it.

    Call arguments:
        inputs: a dictionary of `videos`, float `(batch, frames, height, width, channels)`,
            normalised, of any size that the patches divide; and `boxes`, float `(batch, boxes, 4)`:
            left, top, right and bottom in pixels of the videos.

    Returns:
        Logits `(batch, boxes, num_classes)`; their sigmoid is the probability of each action.

    Raises:
        ValueError: for layers that do not exist, for a backbone whose tokens are no grid, and for
            inputs of other kinds.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPAActionDetector, VJEPABackbone
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=2, num_heads=2)
    >>> detector = VJEPAActionDetector(backbone, num_classes=80)
    >>> videos, boxes = np.zeros((1, 4, 32, 48, 3), "float32"), np.zeros((1, 5, 4), "float32")
    >>> tuple(detector({"videos": videos, "boxes": boxes}).shape)
    (1, 5, 80)
    """

    # Keras builds the metrics, and the optimizer, from the first batch.
    built_when_compiled = False
    head_arguments = (*_HEAD_ARGUMENTS, "layers")

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int | None = None,
        layers: Sequence[int] | None = None,
        output_size: int | Sequence[int] = 7,
        sampling_ratio: int = 0,
        aligned: bool = True,
        pooling: str = "max",
        dropout: float = 0.0,
        trainable_backbone: bool | None = None,
        class_names: Sequence[str] | None = None,
        preprocessor: Preprocessor | None = None,
        **kwargs: Any,
    ) -> None:
        # In half precision, the positions of boxes would be wrong by pixels.
        super().__init__(autocast=False, **kwargs)
        if trainable_backbone is not None:
            check_flag(trainable_backbone=trainable_backbone)
        check_preprocessor(preprocessor, 1, 1)
        self.num_classes, self.class_names = check_classes(num_classes, class_names)
        self.layer_numbers = None if layers is None else [*layers]
        _chosen_layers(backbone, self.layer_numbers)
        self.preprocessor = preprocessor
        self.backbone = backbone
        set_trainable(backbone, trainable_backbone)
        self.head = DetectionHead(
            self.num_classes,
            output_size,
            sampling_ratio,
            aligned,
            pooling,
            dropout,
            name="head",
            dtype=self.dtype_policy,
        )
        # The weights are made here, so that presets and optimizers find them.
        self.build()
        self.compile()

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        width = self.token_encoder().hidden_dim * len(self.chosen_layers)
        self.head.build((None, None, None, width), (None, None, 4))
        self.restore_layer_states()
        self.built = True

    @property
    def chosen_layers(self) -> list[int]:
        """Return the numbers of the layers whose outputs are concatenated, from 0; see `layers`."""
        return _chosen_layers(self.backbone, self.layer_numbers)

    @property
    def trainable_backbone(self) -> bool:
        """Return whether the backbone is trainable, by its own `trainable`."""
        return self.backbone.trainable

    def described_elsewhere(self) -> list[keras.layers.Layer]:
        """Return the backbone, which has a config of its own."""
        return [self.backbone]

    def token_encoder(self) -> TokenEncoder:
        """Return the object that gives the backbone's tokens: the backbone, or an adapter."""
        return as_token_encoder(self.backbone)

    # --- From videos and boxes to logits ---------------------------------------------------------

    def feature_map(self, videos: Tensor, training: bool = False) -> Tensor:
        """Compute the map from which features of boxes are taken.

        Args:
            videos: as in the call.
            training: passed on to the backbone if some part of it is trained.

        Returns:
            `(batch, rows, columns, layers * dim)`.
        """
        if len(videos.shape) != 5 or None in videos.shape[1:]:
            raise ValueError(
                "`videos` must be (batch, frames, height, width, channels), all but the batch "
                f"known. Received shape: {tuple(videos.shape)}"
            )
        _, frames, height, width, _ = videos.shape
        maps = []
        for tokens in self._outputs(videos, training and is_trained(self.backbone)):
            steps, rows, columns = self._grid(tokens.shape[1], frames, height, width)
            by_step = ops.reshape(tokens, (-1, steps, rows, columns, tokens.shape[-1]))
            maps.append(ops.mean(by_step, axis=1))
        return ops.concatenate(maps, axis=-1) if len(maps) > 1 else maps[0]

    def _outputs(self, videos: Tensor, training: bool) -> list[Tensor]:
        """Compute the tokens of each layer; for an image model, those of all frames of a clip."""
        if not isinstance(self.backbone, VJEPABackbone | RivalBackbone):
            return [self.token_encoder().clip_tokens(videos, training)]
        is_of_images = self.backbone.is_image_model
        inputs = ops.reshape(videos, (-1, *videos.shape[2:])) if is_of_images else videos
        outputs = self.backbone.intermediate_features(inputs, self.chosen_layers, training=training)
        if getattr(self.backbone, "with_class_token", False):
            outputs = [x[:, 1:] for x in outputs]
        if not is_of_images:
            return outputs
        return [ops.reshape(x, (-1, videos.shape[1] * x.shape[1], x.shape[2])) for x in outputs]

    def _grid(self, num_tokens: int, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Compute the steps, rows and columns of a clip's tokens, whose cells are squares."""
        encoder = self.token_encoder()
        steps = frames if encoder.is_image_model else frames // (encoder.tubelet_size or frames + 1)
        cells = num_tokens // max(steps, 1)
        rows = round(math.sqrt(cells * height / width))
        columns = cells // max(rows, 1)
        if not steps or steps * rows * columns != num_tokens:
            raise ValueError(
                "`backbone` must have a `tubelet_size` and return the tokens of a grid of squares. "
                f"Received: {num_tokens} tokens of {frames} x {height} x {width}"
            )
        return steps, rows, columns

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> Tensor:
        if not isinstance(inputs, Mapping) or set(inputs) != {"videos", "boxes"}:
            found = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                f"`inputs` must be a dictionary of `videos` and `boxes`. Received: {found}"
            )
        videos = ops.cast(inputs["videos"], self.compute_dtype)
        boxes = ops.cast(inputs["boxes"], "float32")
        if len(boxes.shape) != 3 or boxes.shape[-1] != 4:
            raise ValueError(
                f"`boxes` must be (batch, boxes, 4). Received shape: {tuple(boxes.shape)}"
            )
        features = self.feature_map(videos, training)
        height, width = videos.shape[2:4]
        rows, columns = features.shape[1:3]
        # Multiplying by a list would copy it to the device in each step.
        ends = boxes[..., 0::2] * (columns / width), boxes[..., 1::2] * (rows / height)
        cells = ops.reshape(ops.stack(ends, axis=-1), ops.shape(boxes))
        return self.head(features, cells, training=training)

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Check the shape of videos, as far as it is known; see `PixelModel`."""
        if isinstance(self.backbone, PixelModel) and len(shape) == 5:
            images = self.token_encoder().is_image_model
            self.backbone.check_shape((None, *shape[2:]) if images else (None, *shape[1:]))

    def export_inputs(self) -> dict[str, tuple[int | None, ...]]:
        """Return shapes as `Exportable.export_inputs`: the backbone's clips, any number of boxes.

        Raises:
            ValueError: for a backbone that takes any number of frames, or any size.
        """
        encoder = self.token_encoder()
        if encoder.num_frames is None or encoder.image_size is None:
            raise ValueError(
                "`input_signature` must be given for a backbone that takes any number of frames "
                "or any `image_size`. Received: None"
            )
        clip = (encoder.num_frames, *height_and_width(encoder.image_size), 3)
        return {"videos": clip, "boxes": (None, 4)}

    def compute_output_spec(self, inputs: Any, training: bool | None = False) -> keras.KerasTensor:
        shape = self.compute_output_shape({name: x.shape for name, x in inputs.items()})
        return keras.KerasTensor(shape, dtype=self.variable_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        return (*input_shape["boxes"][:2], self.num_classes)

    def probabilities(self, batch: dict[str, Any]) -> np.ndarray:
        """Compute the probabilities of actions, float32 `(batch, boxes, num_classes)`.

        Args:
            batch: as in the call.
        """
        logits = np.asarray(self.predict_on_batch(batch), "float32")
        return ops.convert_to_numpy(ops.sigmoid(logits))

    def shapes_of_frames(self, size: int) -> dict[str, Any]:
        """Tell what whole frames must be scaled and padded to.

        Args:
            size: side of squares, if the backbone takes squares alone.

        Returns:
            `multiple` and `fits_in`, as arguments of `BoxView`.
        """
        shapes, fits_in = getattr(self.backbone, "input_shapes", "any"), None
        if shapes == "one":
            fits_in = height_and_width(self.backbone.image_size)
        elif shapes == "squares":
            fits_in = (size, size)
        patch_size = getattr(self.backbone, "patch_size", _PATCH_SIZE)
        return {"multiple": patch_size, "fits_in": fits_in}

    def check_crop_size(self, crop_size: int, num_frames: int | None = None) -> None:
        """Check that the backbone takes squares of a size, and clips of a number of frames.

        Args:
            crop_size: side of the squares.
            num_frames: number of frames; None checks the size alone.

        Raises:
            ValueError: for another than its own, if it has one size alone, and for squares that are
                not made of whole patches.
        """
        shapes = getattr(self.backbone, "input_shapes", "any")
        own = height_and_width(self.backbone.image_size) if shapes == "one" else None
        if own is not None and own != (crop_size, crop_size):
            raise ValueError(
                f"`crop_size` must be {self.backbone.image_size}, the one size of this encoder. "
                f"Received: {crop_size}"
            )
        patch_size = getattr(self.backbone, "patch_size", 1)
        if own is None and crop_size % patch_size:
            raise ValueError(
                f"`crop_size` must be a multiple of the encoder's patches of {patch_size} pixels. "
                f"Received: {crop_size}"
            )
        frames = self.backbone.num_frames if shapes == "one" else 1
        if num_frames is not None and frames not in (1, num_frames):
            raise ValueError(
                f"`num_frames` must be {frames}, the one number of frames of this encoder. "
                f"Received: {num_frames}"
            )

    def detect(
        self, video: Any, boxes: Any, second: float | None = None, top: int = 5
    ) -> list[Detection]:
        """Tell what is done in boxes of a video.

        Args:
            video: the path of a video, or an array of its frames, as the `preprocessor` takes it.
            boxes: `(boxes, 4)` with left, top, right and bottom as shares of the frame.
            second: second of the video that the boxes belong to; None for the middle.
            top: number of actions.

        Returns:
            For each box a list of `(name, probability)`, the likeliest first. Without
            `class_names`, numbers are used instead of names.

        Raises:
            ValueError: without a preprocessor, and for inputs that it does not take.

        Example:

        >>> import numpy as np
        >>> from keras_vjepa import VJEPAActionDetector, VJEPABackbone, VJEPAVideoPreprocessor
        >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
        >>> detector = VJEPAActionDetector(
        ...     backbone, class_names=["a", "b"], preprocessor=VJEPAVideoPreprocessor(32, 4)
        ... )
        >>> video, boxes = np.zeros((10, 48, 64, 3), "uint8"), [[0.1, 0.2, 0.5, 0.9]]
        >>> [sorted(name for name, _ in actions) for actions in detector.detect(video, boxes)]
        [['a', 'b']]
        """
        check_whole(1, top=top)
        if self.preprocessor is None:
            raise ValueError(
                "`preprocessor` must be set to detect in files: pass it to the constructor, or "
                "`model.preprocessor = keras_vjepa.VJEPAVideoPreprocessor(...)`. Received: None"
            )
        shapes = self.shapes_of_frames(min(height_and_width(self.preprocessor.image_size)))
        batch = self.preprocessor.key_frame(
            video, boxes, second, shapes["multiple"], fits_in=shapes["fits_in"]
        )
        [found] = self.probabilities(batch)
        names = self.class_names or range(self.num_classes)
        orders = np.argsort(-found, axis=-1, kind="stable")[:, :top].tolist()
        return [
            [(names[n], float(row[n])) for n in order]
            for row, order in zip(found, orders, strict=True)
        ]

    # --- Training by default ---------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        loss_weights: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training as `keras.Model.compile` does, with defaults for a detector.

        Args:
            optimizer: default: `AdamW`, with a learning rate of 1e-4.
            loss: default: cross-entropy of each action, on the logits that the model returns.
            loss_weights, metrics: as in Keras.
            kwargs: as in Keras, and `accumulation_steps`, as in `VJEPAVideoClassifier.compile`.
        """
        if isinstance(loss, str) and loss == "auto":
            loss = "binary_crossentropy"
        if isinstance(optimizer, str) and optimizer == "auto":
            optimizer = AdamW(_LEARNING_RATE)
        super().compile(optimizer, loss_of_logits(loss), loss_weights, metrics, **kwargs)

    # --- Configuration ---------------------------------------------------------------------------

    def head_model(self) -> keras.Model:
        """Return the part that is trained on labels, whose weights have a file of their own."""
        return self.head

    @classmethod
    def weights_asked_for(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Count weights as `VJEPABackbone.weights_asked_for` does, for backbone and head."""
        own = arguments_of(cls, config)
        own["num_classes"], _ = check_classes(own["num_classes"], own["class_names"])
        backbone, asked_for = own["backbone"], {}
        if isinstance(backbone, keras.Model):
            dim, layers = (
                as_token_encoder(backbone).hidden_dim,
                _chosen_layers(backbone, own["layers"]),
            )
        else:
            asked_for = weights_asked_for(backbone, keras.Model)
            dim = backbone["config"].get("hidden_dim")
            count = backbone["config"].get("num_layers")
            if not (isinstance(dim, int) and isinstance(count, int)):
                return asked_for
            levels = backbone["config"].get("level_layers")
            layers = _layers_of(count, levels if own["layers"] is None else own["layers"])
        head = {name: own[name] for name in _HEAD_ARGUMENTS}
        return {**asked_for, PROBE_FILE: DetectionHead.number_of_weights(dim * len(layers), **head)}

    def get_config(self) -> dict[str, Any]:
        of_head = self.head.get_config()
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            **{name: of_head[name] for name in _HEAD_ARGUMENTS},
            "layers": self.layer_numbers,
            "trainable_backbone": self.trainable_backbone,
            "class_names": self.class_names,
            "preprocessor": self.preprocessor
            and keras.saving.serialize_keras_object(self.preprocessor),
        }


def _chosen_layers(backbone: keras.Model, layers: Sequence[int] | None) -> list[int]:
    """Return the numbers of the chosen layers, from 0; a foreign model counts as one layer."""
    if isinstance(backbone, HieraBackbone):
        # Earlier stages have other grids and widths.
        first = sum(backbone.depths[:-1])
        chosen = _layers_of(backbone.num_layers, layers, first)
        if min(chosen) < first:
            raise ValueError(
                f"`layers` must be in the last stage, from {first}. Received: {layers}"
            )
        return chosen
    if isinstance(backbone, VJEPABackbone | VisionBackbone):
        # Of V-JEPA 2.1, only levels have norms of their own.
        levels = getattr(backbone, "level_layers", None)
        return _layers_of(backbone.num_layers, levels if layers is None else layers)
    if layers is not None:
        raise ValueError(
            "`layers` must be None for a backbone that is no VJEPABackbone. "
            f"Received: {type(backbone).__name__} and {layers}"
        )
    return [0]


def _layers_of(count: int, layers: Sequence[int] | None, first: int = 0) -> list[int]:
    if layers is None:
        layers = _LAYERS.get(count, range(max(first, count - _NUM_LAYERS), count))
    chosen = places(count, layers=layers)
    if not chosen:
        raise ValueError("`layers` must name a layer. Received: none")
    return chosen
