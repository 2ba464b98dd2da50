"""Classify videos and images by clips, views, backbone and probe (§4.3, App. D.1, App. D.3).

Departures from the paper's text, as in the authors' code: the optional table of frame numbers.
Departures from the authors' code: that table gives every view the same positions, while theirs
thins the frame numbers out once more for each further view; the loss of an evaluation is that of
the combined prediction.

Shapes: a video is `(batch, clips, views, frames, height, width, channels)`. All views of a clip
show the same frames; clips follow each other in time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_vjepa.arguments import (
    MOST_LONG,
    arguments_of,
    check_choice,
    check_flag,
    check_number,
    check_whole,
)
from keras_vjepa.backend.torch_modules import TorchModule
from keras_vjepa.backend.train_step import TrainableModel
from keras_vjepa.layers.layer_states import KeepsLayerStates
from keras_vjepa.layers.positions import position_table
from keras_vjepa.layers.rematerialization import DrawsInTraining
from keras_vjepa.models.adapters import TokenEncoder, as_token_encoder
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.models.exporting import Exportable
from keras_vjepa.models.frozen import is_trained, set_trainable
from keras_vjepa.models.pixels import PixelModel
from keras_vjepa.presets.claims import weights_asked_for
from keras_vjepa.presets.preprocessing import Preprocessor
from keras_vjepa.tasks.classification import Classification, check_classes, check_preprocessor
from keras_vjepa.tasks.classifier_preset import PROBE_ARGUMENTS, PROBE_FILE, ClassifierPreset
from keras_vjepa.tasks.compiled import own_backbone
from keras_vjepa.tasks.fine_tuning_head import HEADS, FineTuningHead
from keras_vjepa.tasks.probe import MOST_CLASSES, VJEPAProbe
from keras_vjepa.types import Tensor

# The most numbers in the table of frame numbers: enough for an hour of video at the greatest width.
_MOST_TABLE = 2**28


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPAVideoClassifier(
    DrawsInTraining,
    ClassifierPreset,
    KeepsLayerStates,
    Classification,
    TrainableModel,
    TorchModule,
    Exportable,
):
    """Classifies videos by a backbone, frozen unless told otherwise, and a probe (§4.3, App. D.1).

    Call `fit`, and then `classify` with files. The model is compiled with a loss on logits, `AdamW`
    and accuracy, unless `compile` is called again. All clips and views pass through the backbone as
    one batch. The tokens of all clips of a view then pass through the probe together, which gives
    one prediction for each view; without `attend_across_clips`, every clip of every view gives one.
    Several predictions of a video are combined as the mean of their softmax; in training the loss
    is the mean of their losses.

    Args:
        backbone: any Keras model that returns `(batch, tokens, dim)`; see
            `keras_vjepa.models.adapters`. A backbone that takes single images, such as a
            `VJEPABackbone` of one frame, is applied to every frame, and the tokens of all frames of
            a clip are concatenated.
        num_classes: width of the logits; may be left out with `class_names`.
        num_clips: clips of a video.
        num_views: spatial views of a clip in evaluation. Videos of one view are always accepted, so
            that training can use one view and validation all.
        pooling: `"attentive"` or `"average"`; this and the next six are as in `VJEPAProbe`.
        num_heads: heads of the probe; if None, as many as the backbone's, as in the reference.
        head_dim: width of a head of the probe.
        num_layers: layers of the probe.
        mlp_ratio: width of the hidden layer of the probe's MLP.
        layer_norm_epsilon: epsilon of every norm of the probe.
        self_attention: what the probe's further layers see, `"query"` or `"tokens"`.
        attend_across_clips: whether the clips of a view make one prediction.
        max_frames: None, or the number of rows of a sine-cosine table whose row n is added to the
            tokens of a tubelet that begins at frame n of the source video. The reference's runs do
            without this table.
        trainable_backbone: False freezes the backbone, True leaves it as it is, or unfreezes it if
            its `trainable` is False. None freezes a backbone without LoRA. From then on its own
            `trainable`, and that of its layers, determines what is trained, as anywhere in Keras.
        class_names: names of the classes in the order of their numbers; `classify` returns them.
        preprocessor: a `VJEPAVideoPreprocessor` with as many clips and views, through which
            `classify` takes files; saved and loaded with the model. `from_preset` finds it.
        head: `"probe"`, or `"fine_tuning"` for training together with the backbone (App. D.3): the
            mean of the tokens, a norm, dropout and a linear layer that begins close to 0. The
            arguments of a probe, from `pooling` to `self_attention`, are left out then.
        head_dropout: dropout rate of the head for fine-tuning; 0 for a probe.
        encoder_norm: whether the backbone's own final norm comes before the head. With None, it
            comes before a probe, and not before the head of fine-tuning, which learns a norm of its
            own instead, as in VideoMAE. A probe always has it.

    Call arguments:
        inputs: float videos, normalised, `(batch, frames, height, width, channels)` for one clip;
            `(batch, clips, frames, height, width, channels)`;
            `(batch, clips, views, frames, height, width, channels)`; or images
            `(batch, height, width, channels)`, repeated to the frames of the backbone. With
            `max_frames` a dictionary of such `videos` and `frame_indices`, int `(batch, frames)` or
            `(batch, clips, frames)`, each in `[0, max_frames)`.

    Returns:
        Logits `(batch, num_classes)`: those of the probe if there is one prediction, otherwise the
        logarithm of the mean of the softmax. In training several predictions are returned one by
        one, `(batch, predictions, num_classes)`, views before clips.

    Raises:
        ValueError: for a backbone that offers too little, and for wrong ranks, numbers of clips,
            views or frame indices.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
    >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> classifier = VJEPAVideoClassifier(backbone, num_classes=7, num_clips=2, num_views=3)
    >>> tuple(classifier(np.zeros((1, 2, 3, 4, 32, 32, 3), "float32")).shape)
    (1, 7)
    """

    # Keras builds the metrics, and the optimizer, from the first batch.
    built_when_compiled = False

    def __init__(
        self,
        backbone: keras.Model,
        num_classes: int | None = None,
        num_clips: int = 1,
        num_views: int = 1,
        pooling: str = "attentive",
        num_heads: int | None = None,
        head_dim: int | None = None,
        num_layers: int = 1,
        mlp_ratio: float = 4.0,
        layer_norm_epsilon: float = 1e-5,
        self_attention: str = "query",
        attend_across_clips: bool = True,
        max_frames: int | None = None,
        trainable_backbone: bool | None = None,
        class_names: Sequence[str] | None = None,
        preprocessor: Preprocessor | None = None,
        head: str = "probe",
        head_dropout: float = 0.0,
        encoder_norm: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_head(locals())
        check_predictions(num_clips, num_views, attend_across_clips, max_frames)
        if trainable_backbone is not None:
            check_flag(trainable_backbone=trainable_backbone)
        check_preprocessor(preprocessor, num_clips, num_views)
        encoder = as_token_encoder(backbone)
        _check_table(max_frames, encoder)
        self.num_classes, self.class_names = check_classes(num_classes, class_names)
        self.preprocessor = preprocessor
        self.num_clips = num_clips
        self.num_views = num_views
        self.pooling = pooling
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_layers = num_layers
        self.mlp_ratio = mlp_ratio
        self.layer_norm_epsilon = layer_norm_epsilon
        self.self_attention = self_attention
        self.attend_across_clips = attend_across_clips
        self.max_frames = max_frames
        self.head = head
        self.head_dropout = head_dropout
        self.encoder_norm = encoder_norm
        self.backbone = backbone
        set_trainable(backbone, trainable_backbone)
        if not self.reads_normed_tokens:
            norm = own_backbone(backbone, "encoder_norm").norm
            if norm is not None:
                # The head does not read this norm's output, so no gradient reaches it.
                norm.trainable = False
        self.probe = self._new_head(encoder)
        # The weights are made here, so that presets and optimizers find them.
        self.build()
        self.compile()

    def _new_head(self, encoder: TokenEncoder) -> keras.Model:
        if self.head == "fine_tuning":
            return FineTuningHead(
                self.num_classes, self.head_dropout, name="probe", dtype=self.dtype_policy
            )
        return VJEPAProbe(
            self.num_classes,
            encoder.num_heads if self.num_heads is None else self.num_heads,
            self.num_layers,
            self.pooling,
            self.mlp_ratio,
            self.layer_norm_epsilon,
            self.head_dim,
            self.self_attention,
            name="probe",
            dtype=self.dtype_policy,
        )

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        dim = self.token_encoder().hidden_dim
        self.probe.build((None, None, dim))
        if self.max_frames is not None:
            self.frame_table = self.add_weight(
                shape=(self.max_frames, dim),
                initializer="zeros",
                trainable=False,
                name="frame_table",
            )
            self.frame_table.assign(position_table(dim, (self.max_frames,)))
        self.restore_layer_states()
        self.built = True

    @property
    def trainable_backbone(self) -> bool:
        """Return whether the backbone is trainable, by its own `trainable`."""
        return self.backbone.trainable

    def described_elsewhere(self) -> list[keras.layers.Layer]:
        """Return the backbone, which has a config of its own."""
        return [self.backbone]

    # This is a method because Keras would save a model that a property returns a second time.
    def token_encoder(self) -> TokenEncoder:
        """Return the object that gives the backbone's tokens: the backbone, or an adapter."""
        return as_token_encoder(self.backbone)

    @property
    def reads_normed_tokens(self) -> bool:
        """Return whether the backbone's final norm comes before the head; see `encoder_norm`."""
        return self.head == "probe" if self.encoder_norm is None else self.encoder_norm

    # --- From videos to logits -------------------------------------------------------------------

    def features(
        self, videos: Tensor, frame_indices: Tensor | None = None, training: bool = False
    ) -> Tensor:
        """Compute the tokens that the probe takes for each of its predictions.

        Args:
            videos: as in the call.
            frame_indices: as in the call; only with `max_frames`.
            training: passed on to the backbone if some part of it is trained.

        Returns:
            `(batch, predictions, tokens, dim)`.
        """
        if (frame_indices is None) != (self.max_frames is None):
            raise ValueError(
                "`frame_indices` must be given if, and only if, `max_frames` is set. "
                f"Received: `max_frames`={self.max_frames}"
            )
        videos = self._with_clips_and_views(videos)
        if None in videos.shape[1:]:
            raise ValueError(
                "The number and size of `videos` must be known when the model is part of another "
                "one or exported; called by itself, it takes any. Received shape: "
                f"{tuple(videos.shape)}"
            )
        _, clips, views, frames = videos.shape[:4]
        tokens = self._tokens(
            ops.reshape(videos, (-1, *videos.shape[3:])), training and is_trained(self.backbone)
        )
        _, num_tokens, dim = ops.shape(tokens)
        tokens = ops.reshape(tokens, (-1, clips, views, num_tokens, dim))
        if frame_indices is not None:
            tokens = self._add_frame_positions(tokens, frame_indices, frames)
        tokens = ops.transpose(tokens, (0, 2, 1, 3, 4))
        if self.attend_across_clips:
            return ops.reshape(tokens, (-1, views, clips * num_tokens, dim))
        return ops.reshape(tokens, (-1, views * clips, num_tokens, dim))

    def _tokens(self, clips: Tensor, training: bool) -> Tensor:
        if self.reads_normed_tokens:
            return self.token_encoder().clip_tokens(clips, training)
        return own_backbone(self.backbone, "encoder_norm").clip_tokens(clips, training, norm=False)

    def attention_weights(self, videos: Tensor, frame_indices: Tensor | None = None) -> Tensor:
        """Compute by how much the probe's query attends to each token of a video.

        For the attention in the backbone's blocks see `backbone.attention_weights`.

        Args:
            videos: as in the call.
            frame_indices: as in the call; only with `max_frames`.

        Returns:
            float32 `(batch, predictions, heads, tokens)`: for each prediction that is combined, the
            weights of the tokens that `features` returns; over the tokens they sum to one.

        Raises:
            ValueError: for average pooling, for the head of fine-tuning, and for wrong inputs as in
                the call.

        Example:

        >>> import numpy as np
        >>> from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier
        >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
        >>> classifier = VJEPAVideoClassifier(backbone, num_classes=3)
        >>> tuple(classifier.attention_weights(np.zeros((1, 4, 32, 32, 3), "float32")).shape)
        (1, 1, 2, 8)
        """
        check_choice(("probe",), head=self.head)
        self.check_inputs(videos)
        tokens = self.features(videos, frame_indices)
        _, predictions, num_tokens, dim = ops.shape(tokens)
        weights = self.probe.attention_weights(ops.reshape(tokens, (-1, num_tokens, dim)))
        return ops.reshape(weights, (-1, predictions, *weights.shape[1:]))

    def _with_clips_and_views(self, videos: Tensor) -> Tensor:
        _, _, frames, *_ = self._axes(videos.shape)
        rank = len(videos.shape)
        if rank == 4:
            videos = ops.repeat(ops.expand_dims(videos, 1), frames, axis=1)
        if rank in (4, 5):
            return ops.expand_dims(videos, (1, 2))
        return ops.expand_dims(videos, 2) if rank == 6 else videos

    def _axes(self, shape: Any) -> tuple[Any, ...]:
        """Return clips, views, frames, height, width and channels of inputs of a shape."""
        if len(shape) == 4:
            frames = self.token_encoder().num_frames
            if frames is None:
                raise ValueError(
                    "`videos` must be videos for a backbone without a `num_frames`. Received images"
                )
            shape = (shape[0], frames, *shape[1:])
        if len(shape) not in (5, 6, 7):
            raise ValueError(
                "`videos` must be (batch, [clips, [views,]] frames, height, width, channels), or "
                f"images (batch, height, width, channels). Received {len(shape)} axes"
            )
        clips, views = ((*shape[1:-4], 1, 1) if len(shape) < 7 else shape[1:3])[:2]
        if clips not in (self.num_clips, None):
            raise ValueError(
                f"`videos` must hold `num_clips`={self.num_clips} clips. Received: {clips}"
            )
        if views not in (1, self.num_views, None):
            raise ValueError(
                f"`videos` must hold 1 view or `num_views`={self.num_views}. Received: {views}"
            )
        return (clips, views, *shape[-4:])

    def check_shape(self, shape: tuple[int | None, ...]) -> None:
        """Check the shape of videos or images, as far as it is known.

        Raises:
            ValueError: for wrong axes, for wrong numbers of clips or views, and for sizes of clips
                that the backbone does not take.
        """
        _, _, frames, *image = self._axes(shape)
        if isinstance(self.backbone, PixelModel):
            is_of_images = self.token_encoder().is_image_model
            self.backbone.check_shape((None, *image) if is_of_images else (None, frames, *image))

    def _add_frame_positions(self, tokens: Tensor, frame_indices: Tensor, frames: int) -> Tensor:
        """Add to each tubelet's tokens the table's row for the tubelet's first frame."""
        if len(frame_indices.shape) == 2:
            frame_indices = ops.expand_dims(frame_indices, 1)
        if tuple(frame_indices.shape[1:]) != (self.num_clips, frames):
            raise ValueError(
                f"`frame_indices` must be (batch, `num_clips`={self.num_clips}, {frames} frames). "
                f"Received shape: {tuple(frame_indices.shape)}"
            )
        encoder = self.token_encoder()
        # The constructor has refused videos without a tubelet size.
        tubelet = 1 if encoder.is_image_model or not encoder.tubelet_size else encoder.tubelet_size
        _, clips, views, num_tokens, dim = ops.shape(tokens)
        steps = frames // tubelet
        rows = ops.take(self.frame_table, frame_indices[:, :, ::tubelet], axis=0)
        rows = ops.cast(ops.reshape(rows, (-1, clips, 1, steps, 1, dim)), tokens.dtype)
        by_step = ops.reshape(tokens, (-1, clips, views, steps, num_tokens // steps, dim))
        return ops.reshape(by_step + rows, (-1, clips, views, num_tokens, dim))

    def call(self, inputs: Tensor | dict[str, Tensor], training: bool = False) -> Tensor:
        if not isinstance(inputs, dict):
            inputs = {"videos": inputs}
        unknown = set(inputs) - {"videos", "frame_indices"}
        if unknown or "videos" not in inputs:
            raise ValueError(
                "`inputs` must be a dictionary of `videos` and `frame_indices`. "
                f"Received keys: {sorted(inputs)}"
            )
        tokens = self.features(**inputs, training=training)
        _, predictions, num_tokens, dim = ops.shape(tokens)
        tokens = ops.reshape(tokens, (-1, num_tokens, dim))
        if self.head == "fine_tuning":
            logits = self.probe(tokens, training=training)
        else:
            logits = self.probe(tokens)
        if predictions == 1:
            return logits
        logits = ops.reshape(logits, (-1, predictions, self.num_classes))
        return logits if training else combine_predictions(logits)

    def compute_output_spec(self, inputs: Any, training: bool | None = False) -> keras.KerasTensor:
        # Computed by hand: Keras would try `call`, which needs to know the length of the videos.
        videos = inputs["videos"] if isinstance(inputs, dict) else inputs
        batch, views = videos.shape[0], self._axes(videos.shape)[1]
        predictions = views if self.attend_across_clips else views * self.num_clips
        several = (predictions,) if training and predictions > 1 else ()
        return keras.KerasTensor((batch, *several, self.num_classes), dtype=self.variable_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        shape = input_shape["videos"] if isinstance(input_shape, dict) else input_shape
        self._axes(shape)
        return (shape[0], self.num_classes)

    # --- Several predictions in training ---------------------------------------------------------

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Compute Keras' loss, where each prediction of a video is a sample (App. D.1)."""
        if len(y_pred.shape) == 3:
            predictions = y_pred.shape[1]
            y_pred = ops.reshape(y_pred, (-1, self.num_classes))
            y = ops.repeat(y, predictions, axis=0)
            if sample_weight is not None:
                sample_weight = ops.repeat(sample_weight, predictions, axis=0)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Compute Keras' metrics on the combined prediction of each video."""
        if len(y_pred.shape) == 3:
            y_pred = combine_predictions(y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    # --- Export ----------------------------------------------------------------------------------

    def export_inputs(self) -> Any:
        """Return shapes as `Exportable.export_inputs`: clips of the backbone's own size."""
        encoder = self.token_encoder()
        if encoder.num_frames is None or encoder.image_size is None:
            raise ValueError(
                "`input_signature` must be given for a backbone that takes any number of frames "
                "or any `image_size`. Received: None"
            )
        several: tuple[int, ...] = ()
        if self.num_views > 1:
            several = (self.num_clips, self.num_views)
        elif self.num_clips > 1:
            several = (self.num_clips,)
        clip = (encoder.num_frames, *height_and_width(encoder.image_size), 3)
        if self.max_frames is None:
            return (*several, *clip)
        return {"videos": (*several, *clip), "frame_indices": (self.num_clips, encoder.num_frames)}

    # --- Configuration ---------------------------------------------------------------------------

    @classmethod
    def weights_asked_for(cls, config: Mapping[str, Any]) -> dict[str, int]:
        """Count weights as `VJEPABackbone.weights_asked_for` does, for backbone and probe."""
        own = arguments_of(cls, config)
        own["num_classes"], _ = check_classes(own["num_classes"], own["class_names"])
        backbone, asked_for = own["backbone"], {}
        if isinstance(backbone, keras.Model):
            encoder = as_token_encoder(backbone)
            dim, heads = encoder.hidden_dim, encoder.num_heads
        else:
            asked_for = weights_asked_for(backbone, keras.Model)
            dim, heads = (backbone["config"].get(name) for name in ("hidden_dim", "num_heads"))
        check_head(own)
        if isinstance(dim, int) and own["head"] == "fine_tuning":
            asked_for[PROBE_FILE] = FineTuningHead.number_of_weights(
                dim, own["num_classes"], own["head_dropout"]
            )
        elif isinstance(dim, int):
            probe = {name: own[name] for name in PROBE_ARGUMENTS}
            probe["num_heads"] = heads if own["num_heads"] is None else own["num_heads"]
            asked_for[PROBE_FILE] = VJEPAProbe.number_of_weights(dim, **probe)
        return asked_for

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "num_classes": self.num_classes,
            "num_clips": self.num_clips,
            "num_views": self.num_views,
            "pooling": self.pooling,
            "num_heads": self.num_heads,
            "head_dim": self.head_dim,
            "num_layers": self.num_layers,
            "mlp_ratio": self.mlp_ratio,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "self_attention": self.self_attention,
            "attend_across_clips": self.attend_across_clips,
            "max_frames": self.max_frames,
            "trainable_backbone": self.trainable_backbone,
            "class_names": self.class_names,
            "preprocessor": self.preprocessor
            and keras.saving.serialize_keras_object(self.preprocessor),
            "head": self.head,
            "head_dropout": self.head_dropout,
            "encoder_norm": self.encoder_norm,
        }


def check_head(arguments: Mapping[str, Any]) -> None:
    """Check those arguments of `VJEPAVideoClassifier` that say which head it has.

    Args:
        arguments: all arguments of the constructor, by name.

    Raises:
        ValueError: for the first that is out of range, or that only the other head takes.
    """
    head, encoder_norm = arguments["head"], arguments["encoder_norm"]
    check_choice(HEADS, head=head)
    check_number("[0, 1)", head_dropout=arguments["head_dropout"])
    if encoder_norm is not None:
        check_flag(encoder_norm=encoder_norm)
    if head == "probe":
        if encoder_norm is False:
            raise ValueError("`encoder_norm` must be None or True for a probe. Received: False")
        if arguments["head_dropout"]:
            raise ValueError(
                "`head_dropout` must be 0 for a probe: it is the head's of fine-tuning. "
                f"Received: {arguments['head_dropout']}"
            )
        return
    check_whole(1, MOST_CLASSES, optional=True, num_classes=arguments["num_classes"])
    defaults = arguments_of(VJEPAVideoClassifier, {"backbone": None})
    for name in PROBE_ARGUMENTS[1:]:
        if arguments[name] != defaults[name]:
            raise ValueError(
                f"`{name}` must be left out with `head`='fine_tuning': it is a probe's. "
                f"Received: {arguments[name]!r}"
            )


def _check_table(max_frames: int | None, encoder: TokenEncoder) -> None:
    """Check that tokens belong to frames, and that the table of frame numbers is not too large.

    No file holds that table, so that its size is not known from one.
    """
    if max_frames is None:
        return
    if encoder.tubelet_size is None:
        raise ValueError("`max_frames` must be None for a backbone without a `tubelet_size`.")
    if max_frames * encoder.hidden_dim > _MOST_TABLE:
        raise ValueError(
            f"`max_frames` must give a table of at most {_MOST_TABLE:,} numbers. "
            f"Received: {max_frames} of {encoder.hidden_dim}"
        )


def check_predictions(
    num_clips: int, num_views: int, attend_across_clips: bool, max_frames: int | None
) -> None:
    """Check those arguments of `VJEPAVideoClassifier` that can be checked without a backbone.

    Raises:
        ValueError: for the first that is out of range.
    """
    check_whole(1, MOST_LONG, num_clips=num_clips, num_views=num_views)
    check_whole(1, MOST_CLASSES, optional=True, max_frames=max_frames)
    check_flag(attend_across_clips=attend_across_clips)


def combine_predictions(logits: Tensor) -> Tensor:
    """Combine several predictions into the logarithm of the mean of their softmax (App. D.1).

    Args:
        logits: `(batch, predictions, classes)`.

    Returns:
        `(batch, classes)`, which are logits of that mean.
    """
    log_probabilities = ops.log_softmax(logits, axis=-1)
    return ops.logsumexp(log_probabilities, axis=1) - math.log(logits.shape[1])
