"""Name the classes of video files, and compile classifiers by default (§4.3, App. D.1).

Departure from the authors' evaluations: a probe that is trained without further arguments has a
learning rate of Table 10 that does not follow a schedule.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_vjepa.arguments import check_whole, shown
from keras_vjepa.models.pixels import PixelModel
from keras_vjepa.presets.preprocessing import Preprocessor
from keras_vjepa.tasks.class_labels import check_class_labels
from keras_vjepa.tasks.compiled import CompiledTask
from keras_vjepa.training.optimizer import AdamW

# The default for a probe on a frozen backbone, and the one for training both together.
_LEARNING_RATE, _FINE_TUNING_RATE = 1e-3, 1e-4

_CROSS_ENTROPIES = {
    keras.losses.sparse_categorical_crossentropy: keras.losses.SparseCategoricalCrossentropy,
    keras.losses.categorical_crossentropy: keras.losses.CategoricalCrossentropy,
    keras.losses.categorical_focal_crossentropy: keras.losses.CategoricalFocalCrossentropy,
    keras.losses.binary_crossentropy: keras.losses.BinaryCrossentropy,
    keras.losses.binary_focal_crossentropy: keras.losses.BinaryFocalCrossentropy,
}

Prediction = list[tuple[str | int, float]]


def check_classes(
    num_classes: int | None, class_names: Sequence[str] | None
) -> tuple[int, list[str] | None]:
    """Check the number and the names of a classifier's classes; either may be left out.

    Args:
        num_classes: how many classes there are; None for as many as there are names.
        class_names: names in the order of their numbers, or None.

    Returns:
        The number, and the names.

    Raises:
        ValueError: if both are missing or do not agree, and for names that are empty, are not
            strings or occur twice.

    Example:

    >>> from keras_vjepa.tasks.classification import check_classes
    >>> check_classes(None, ("cat", "dog"))
    (2, ['cat', 'dog'])
    """
    if class_names is None:
        if num_classes is None:
            raise ValueError("`num_classes` or `class_names` must be given. Received: neither")
        return num_classes, None
    # A set is refused, because it has no order by which classes could be numbered.
    names = [] if isinstance(class_names, str | set | frozenset) else list(class_names)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"`class_names` must be a list of names. Received: {shown(class_names)}")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"`class_names` must differ. Received twice: {twice[0]!r}")
    if num_classes is not None and num_classes != len(names):
        raise ValueError(
            f"`class_names` must hold `num_classes`={num_classes} names. Received: {len(names)}"
        )
    return len(names), [str(name) for name in names]


def check_preprocessor(preprocessor: Any, num_clips: int, num_views: int) -> None:
    """Check that a preprocessor makes as many clips and views as a classifier takes.

    Raises:
        ValueError: if it does not, or if it is something else than a preprocessor or None.
    """
    if preprocessor is None:
        return
    for name, wanted in (("num_clips", num_clips), ("num_views", num_views)):
        found = getattr(preprocessor, name, None)
        if found is None:
            raise ValueError(
                "`preprocessor` must be a VJEPAVideoPreprocessor or None. "
                f"Received: {shown(preprocessor)}"
            )
        if found != wanted and (name, found) != ("num_views", 1):
            raise ValueError(
                f"`preprocessor` must have `{name}`={wanted} as the classifier. Received: {found}"
            )


def loss_of_logits(loss: Any) -> Any:
    """Return the loss on logits that a user means; Keras' own names mean one on probabilities.

    Args:
        loss: a loss as Keras' `compile` takes it, or `"auto"` for that of a classifier.
    """
    if isinstance(loss, str) and loss == "auto":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for function, kind in _CROSS_ENTROPIES.items():
        name = loss.lower().replace("_", "") if isinstance(loss, str) else None
        if name == kind.__name__.lower() or loss in (function, kind):
            return kind(from_logits=True)
    if getattr(loss, "from_logits", None) is False:
        warnings.warn(
            "`loss` should take the logits that a classifier returns: "
            f"{type(loss).__name__}(from_logits=True). Received: one that takes probabilities",
            stacklevel=3,
        )
    return loss


class Classification(PixelModel, CompiledTask):
    """Adds class names, classification of files and default training to a classifier.

    This is a mixin for a model that has the attributes below and returns logits.

    Attributes:
        num_classes: width of the logits.
        class_names: names in the order of their numbers, or None.
        preprocessor: turns files into the model's input; None if there is none.
        max_frames: None for a model that takes pixels alone.
    """

    num_classes: int
    class_names: list[str] | None
    preprocessor: Preprocessor | None
    max_frames: int | None

    def classify(self, inputs: Any, top: int = 5, batch_size: int = 4) -> Any:
        """Name the likeliest classes of videos and images.

        Args:
            inputs: what the `preprocessor` takes: a path, an array, PIL images, a tensor, or a list
                or an iterator of any of these. It makes the clips and views that the classifier
                combines.
            top: number of classes.
            batch_size: videos that are read and passed through the model at a time.

        Returns:
            A list of `(name, probability)`, the likeliest first; for a list of videos, one such
            list for each. Without `class_names`, class numbers are used instead of names.

        Raises:
            ValueError: without a preprocessor, for a model that needs `frame_indices`, and for
                inputs that the preprocessor does not take.

        Example:

        >>> import numpy as np
        >>> from keras_vjepa import VJEPABackbone, VJEPAVideoClassifier, VJEPAVideoPreprocessor
        >>> backbone = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
        >>> classifier = VJEPAVideoClassifier(
        ...     backbone, class_names=["a", "b"], preprocessor=VJEPAVideoPreprocessor(32, 4)
        ... )
        >>> names = classifier.classify(np.zeros((10, 48, 64, 3), "uint8"))
        >>> sorted(name for name, probability in names)
        ['a', 'b']
        """
        check_whole(1, top=top, batch_size=batch_size)
        if self.preprocessor is None:
            raise ValueError(
                "`preprocessor` must be set to classify files: pass it to the constructor, or "
                "`model.preprocessor = keras_vjepa.VJEPAVideoPreprocessor(...)`. Received: None"
            )
        if self.max_frames is not None:
            raise ValueError(
                "`max_frames` must be None to classify files: a preprocessor gives no "
                f"`frame_indices`. Received: {self.max_frames}"
            )
        if isinstance(inputs, Iterator):  # it can be read only once, and is needed twice
            inputs = list(inputs)
        sources = self.preprocessor.sources(inputs)
        predictions: list[Prediction] = []
        for start in range(0, len(sources), batch_size):
            clips = np.asarray(self.preprocessor.batch(sources[start : start + batch_size]))
            missing = batch_size - len(clips) if start else 0
            # The last batch is filled up to the size of the others: for another size the model
            # would be compiled again.
            filled = np.concatenate([clips, np.repeat(clips[-1:], missing, axis=0)])
            logits = self.predict(filled, batch_size=len(filled), verbose=0)
            probabilities = ops.convert_to_numpy(ops.softmax(np.asarray(logits, "float32")))
            predictions += [self._named(row, top) for row in probabilities[: len(clips)]]
        return predictions[0] if self.preprocessor.is_one(inputs) else predictions

    def _named(self, probabilities: np.ndarray, top: int) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")[:top].tolist()
        names = self.class_names or range(self.num_classes)
        return [(names[number], float(probabilities[number])) for number in order]

    def check_labels(self, y: Any, num_videos: int | None = None) -> None:
        """Check that labels fit the classes and the loss; see `check_class_labels`."""
        loss = getattr(self, "loss", None)
        if y is None and num_videos is not None and loss is not None:
            raise ValueError("`y` must be given beside videos, a label for each. Received: None")
        check_class_labels(y, self.num_classes, loss, num_videos)

    # --- Training by default ---------------------------------------------------------------------

    def compile(
        self,
        optimizer: Any = "auto",
        loss: Any = "auto",
        loss_weights: Any = None,
        metrics: Any = "auto",
        accumulation_steps: int = 1,
        **kwargs: Any,
    ) -> None:
        """Configure training as `keras.Model.compile` does, with defaults for a classifier.

        The constructor has called it without arguments.

        Args:
            optimizer: default: `AdamW`, with a learning rate of 1e-3, or 1e-4 if the backbone is
                trained.
            loss: default: cross-entropy between the logits and class numbers. The names of Keras'
                cross-entropies mean those on logits, because the model returns logits; a
                loss object that takes probabilities causes a warning.
            loss_weights: as in Keras.
            metrics: default: the accuracy if the loss is the default one too, otherwise none.
            accumulation_steps: number of parts in which a device works through its share of a
                batch, one after the other, before the optimizer's step. This takes less memory
                and gives the same numbers, except for what is drawn for each sample, such as
                stochastic depth. The parts need not divide the batch.
            kwargs: as in Keras.

        Raises:
            ValueError: for parts of a batch with a loss that is not the mean over samples.
        """
        if isinstance(metrics, str) and metrics == "auto":
            metrics = ["accuracy"] if isinstance(loss, str) and loss == "auto" else None
        # With None, Keras would keep the metrics of the last call.
        metrics = [] if metrics is None else metrics
        if isinstance(optimizer, str) and optimizer == "auto":
            trains_backbone = bool(self.backbone.trainable_variables)
            optimizer = AdamW(_FINE_TUNING_RATE if trains_backbone else _LEARNING_RATE)
        super().compile(
            optimizer,
            loss_of_logits(loss),
            loss_weights,
            metrics,
            accumulation_steps=accumulation_steps,
            **kwargs,
        )
