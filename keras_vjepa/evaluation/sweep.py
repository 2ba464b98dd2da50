"""Many probes on the same frozen features, trained side by side (§4.3, App. D.1).

Every probe has its own learning rate and weight decay, and gets the numbers that it would get
alone: same initial weights, same batches, its own clipping. Which one is best is decided on
training videos that are held out, never on the test set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend import collectives, keras_internals
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.backend.inference import Predictor
from keras_vjepa.data.batches.features import (
    EvaluationFeatureBatches,
    Features,
    LabelledFeatureBatches,
)
from keras_vjepa.data.batches.labelled import OrderedBatches, TrainingBatches
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier, combine_predictions
from keras_vjepa.tasks.probe import VJEPAProbe
from keras_vjepa.training.optimizer import AdamW
from keras_vjepa.training.schedules import CosineSchedule

# The label of the built-in set is digit * 10 + motion.
DIGIT_MOTION_TASKS = {"digit": 10, "motion": 10}


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are built and trained.

    Batch size and learning rate were chosen on 400 held-out training videos of the built-in set
    with the untrained encoder, 8 epochs: 32 and 3e-3 read motion .71 and digit .37; 64 and 1e-3
    only .39 and .12.

    Attributes:
        tasks: number of classes of each task. With several, a sample's label is their labels as
            the digits of one number, the first task's first.
        candidates: learning rate and weight decay of each probe of a task.
        constant_decay: weight decay stays as it is; otherwise it falls to 1e-6 by a cosine, as the
            authors' does. The learning rate falls to 0 by a cosine.
        head_dim, num_heads: as in `VJEPAProbe`; the encoder's heads if None.
    """

    tasks: dict[str, int] = field(default_factory=lambda: dict(DIGIT_MOTION_TASKS))
    candidates: tuple[tuple[float, float], ...] = ((3e-3, 0.01),)
    constant_decay: bool = False
    clip_norm: float = 1.0
    batch_size: int = 32
    epochs: int = 8
    pooling: str = "attentive"
    num_layers: int = 1
    num_heads: int | None = None
    head_dim: int | None = None
    seed: int = 0

    @property
    def num_labels(self) -> int:
        """Number of values that a sample's label can have."""
        return math.prod(self.tasks.values())

    def split_labels(self, labels: Any) -> dict[str, Any]:
        """The label in each task of labels, an array or a tensor of whole numbers."""
        split, below = {}, self.num_labels
        for task, num_classes in self.tasks.items():
            below //= num_classes
            split[task] = labels // below % num_classes
        return split


class SweepAdamW(AdamW):
    """A step of AdamW for each of several networks, each as if it were alone.

    Args:
        networks: variables of each network.
        candidates: learning rate and weight decay of each network.
        constant_decay: see `ProbeSettings`.
        clip_norm: largest gradient norm of a network.
    """

    def __init__(
        self,
        networks: Sequence[Sequence[keras.Variable]],
        candidates: Sequence[tuple[float, float]],
        constant_decay: bool,
        clip_norm: float,
    ) -> None:
        super().__init__(CosineSchedule(1.0, 0.0, 1), 0.0, clip_norm=clip_norm)
        # A variable, because runs of different length share one compiled step.
        self.total_steps = self.add_variable((), "ones", name="total_steps")
        steps: Any = self.total_steps
        self.clip_separately(networks)
        # Networks with the same numbers are updated at once.
        groups: dict[tuple[float, float], set[Any]] = {}
        for network, candidate in zip(networks, candidates, strict=True):
            groups.setdefault(candidate, set()).update(map(self._var_key, network))
        self._groups = [
            (
                keys,
                CosineSchedule(learning_rate, 0.0, steps),
                weight_decay if constant_decay else CosineSchedule(weight_decay, 1e-6, steps),
            )
            for (learning_rate, weight_decay), keys in groups.items()
        ]

    def _backend_apply_gradients(
        self, grads: Sequence[Any], trainable_variables: Sequence[keras.Variable]
    ) -> None:
        for keys, learning_rate, weight_decay in self._groups:
            pairs = [
                (grad, variable)
                for grad, variable in zip(grads, trainable_variables, strict=True)
                if self._var_key(variable) in keys
            ]
            self._learning_rate, self._weight_decay = learning_rate, weight_decay
            super()._backend_apply_gradients(*(list(items) for items in zip(*pairs, strict=True)))

    def restart(self, total_steps: int) -> None:
        """Forget everything, for a run of that many steps."""
        for variable in self.variables:
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        self.total_steps.assign(total_steps)


class ProbeSweep(keras_internals.Overrides, keras.Model):
    """Independent probes on the same features; the loss is the sum of theirs.

    Ready for `fit` with labels `(batch,)`; compiled once for any number of trainings, on features
    of one shape.

    Args:
        settings: how the probes are built and trained.
        dim: width of the tokens.
        num_heads: of the probes, where the settings do not say.
        classifier: computes the features from videos in each step. None takes features.

    Call arguments:
        inputs: features `(batch, predictions, tokens, dim)`, or videos with a `classifier`.

    Returns:
        Logits of each task: `(batch, candidates, classes)`, of the combined predictions; in
        training of each prediction, `(batch, candidates, predictions, classes)`.
    """

    def __init__(
        self,
        settings: ProbeSettings,
        dim: int,
        num_heads: int | None = None,
        classifier: VJEPAVideoClassifier | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.dim = dim
        self.num_heads = settings.num_heads or num_heads
        if classifier is not None:
            # All of it, its own probe too: only the probes here learn.
            classifier.trainable = False
        self.classifier = classifier
        count = len(settings.candidates)
        self.probes = [self._fresh_probe(task) for task in settings.tasks for _ in range(count)]
        optimizer = SweepAdamW(
            [probe.trainable_variables for probe in self.probes],
            settings.candidates * len(settings.tasks),
            settings.constant_decay,
            settings.clip_norm,
        )
        self.built = True
        self.predictor = Predictor(self)
        self.compile(optimizer)
        optimizer.build(self.trainable_variables)

    def _fresh_probe(self, task: str) -> VJEPAProbe:
        settings = self.settings
        probe = VJEPAProbe(
            settings.tasks[task],
            self.num_heads,
            settings.num_layers,
            settings.pooling,
            head_dim=settings.head_dim,
        )
        probe.build((None, None, self.dim))
        return probe

    def probes_of(self, task: str) -> list[VJEPAProbe]:
        """The probes of a task, in the order of the candidates."""
        return self.probes[self._places_of(task)]

    def _places_of(self, task: str) -> slice:
        count = len(self.settings.candidates)
        start = list(self.settings.tasks).index(task) * count
        return slice(start, start + count)

    def restart(self, seed: int, total_steps: int) -> None:
        """Give all probes of a task the same fresh weights, for a training of that many steps."""
        for task in self.settings.tasks:
            keras.utils.set_random_seed(seed)
            weights = self._fresh_probe(task).get_weights()
            for probe in self.probes_of(task):
                probe.set_weights(weights)
        self.optimizer.restart(total_steps)

    def call(self, inputs: Any, training: bool = False) -> dict[str, Any]:
        features = inputs if self.classifier is None else self.classifier.features(inputs)
        _, predictions, num_tokens, dim = features.shape
        tokens = ops.reshape(features, (-1, num_tokens, dim))
        together = VJEPAProbe.call_together(self.probes, tokens)
        outputs = {}
        for task, num_classes in self.settings.tasks.items():
            shape = (-1, predictions, num_classes)
            logits = [ops.reshape(one, shape) for one in together[self._places_of(task)]]
            if not training:
                logits = [combine_predictions(one) for one in logits]
            outputs[task] = ops.stack(logits, axis=1)
        return outputs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        total = 0.0
        for task, labels in self.settings.split_labels(ops.cast(y, "int32")).items():
            logits = y_pred[task]
            labels = ops.reshape(labels, (-1,) + (1,) * (len(logits.shape) - 2))
            labels = ops.broadcast_to(labels, ops.shape(logits)[:-1])
            losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            # A mean over samples and predictions for each candidate, and the sum of those.
            total += len(self.settings.candidates) * ops.mean(losses)
        return collectives.loss_share(total)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        return collectives.reduce_logs(super().compute_metrics(x, y, y_pred, sample_weight))

    def train_on(
        self, batches: TrainingBatches[Any], start: int, stop: int, parallel: DataParallel = ALONE
    ) -> None:
        """Train on this process's batches of the steps from `start` to `stop`."""
        try:
            stream = parallel.feed(batches.stream(start, stop))
            self.fit(stream, steps_per_epoch=stop - start, shuffle=False, verbose=0)
        except Exception:
            # Some backends wrap what the data raised into pages of their own.
            if batches.error is not None:
                raise batches.error from None
            raise

    def logits(self, batches: OrderedBatches[Any]) -> dict[str, NDArray[np.float32]]:
        """Of every sample once and in order: `(samples, candidates, classes)` for each task.

        Samples that could not be read have NaN, which no class is right for. Each of several
        processes reads its share, and has the logits of all.
        """
        parts = [self.predictor(inputs, weight) for inputs, _, weight in batches.stream()]
        return {
            task: np.concatenate([part[task] for part in parts])[: len(batches.samples)]
            for task in self.settings.tasks
        }


def labels_of(samples: Sequence[Sample], settings: ProbeSettings) -> dict[str, NDArray[np.int32]]:
    """Labels of each task, `(samples,)`."""
    return settings.split_labels(np.array([sample.label for sample in samples], np.int32))


def top_k(logits: NDArray[np.float32], labels: NDArray[np.int32], k: int) -> NDArray[np.bool_]:
    """Whether the label is among the `k` largest logits.

    Args:
        logits: `(samples, ..., classes)`.
        labels: `(samples,)`.

    Returns:
        `(samples, ...)`; False where the logits are NaN.
    """
    labels = labels.reshape(-1, *[1] * (logits.ndim - 1))
    own = np.take_along_axis(logits, labels, axis=-1)
    # Equal logits count against the label: a probe that tells nothing apart is not right.
    better_or_equal = np.sum(logits >= own, axis=-1)
    return (better_or_equal <= k) & ~np.isnan(own[..., 0])


def feature_batches(
    features: Features, samples: Sequence[Sample], settings: ProbeSettings
) -> LabelledFeatureBatches:
    """Training batches of features: in the order that the clips themselves would have."""
    return LabelledFeatureBatches(
        samples,
        settings.batch_size,
        features,
        num_classes=settings.num_labels,
        # With several tasks, not every combination need occur.
        allow_absent_classes=True,
        seed=settings.seed,
    )


def evaluation_batches(
    features: Features, samples: Sequence[Sample], settings: ProbeSettings
) -> EvaluationFeatureBatches:
    """Every sample's features once."""
    return EvaluationFeatureBatches(
        samples, settings.batch_size, features, num_classes=settings.num_labels
    )
