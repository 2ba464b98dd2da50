"""Train many probes on the same frozen features, side by side (§4.3, App. D.1).

Every probe has its own learning rate and weight decay, and learns exactly what it would learn
alone, because all have the same initial weights, the same batches and their own clipping. The best
one is chosen on training videos that are held out, never on the test set.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from numpy.typing import NDArray

from keras_vjepa.backend import collectives
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.backend.inference import DistributedInference
from keras_vjepa.backend.optimizer_state import inner_optimizers, reset_loss_scale
from keras_vjepa.backend.train_step import TrainableModel
from keras_vjepa.data.batches.labelled import OrderedBatches, TrainingBatches
from keras_vjepa.evaluation.sweep_optimizer import Candidate, SweepAdamW
from keras_vjepa.evaluation.task_labels import Tasks, split_labels
from keras_vjepa.tasks.classifier import VJEPAVideoClassifier, combine_predictions
from keras_vjepa.tasks.probe import VJEPAProbe
from keras_vjepa.training.loss_log import FiniteLoss, NotFiniteError
from keras_vjepa.types import Tensor

_LOG = logging.getLogger(__name__)

# What to do about a loss that is not finite, for the error message.
REMEDY = "the `learning_rates` must be lower"


class ProbeSweep(TrainableModel):
    """Trains independent probes on the same features; the loss is the sum of their losses.

    It is ready for `fit` with labels `(batch,)`, and is compiled once for any number of trainings
    on features of one shape.

    Args:
        probe: a built probe; those of the sweep have its arguments, and their own classes.
        tasks: number of classes of each task.
        candidates: learning rate and weight decay of each probe of a task.
        classifier: computes the features from videos in each step; None if inputs are features.
        make_optimizer: called with the variables of each probe and its candidate, `networks` and
            `candidates` of `SweepAdamW`.

    Call arguments:
        inputs: features `(batch, predictions, tokens, dim)`, or the inputs of the `classifier` if
            there is one.

    A step logs `finite`, 1.0 or 0.0: whether every task still has a probe that learns. A probe that
    diverges does not stop the others.

    Returns:
        Logits for each task: `(batch, candidates, classes)`, of the combined predictions; in
        training of each prediction, `(batch, candidates, predictions, classes)`.
    """

    def __init__(
        self,
        probe: VJEPAProbe,
        tasks: Tasks,
        candidates: Sequence[Candidate],
        classifier: VJEPAVideoClassifier | None = None,
        make_optimizer: Callable[..., SweepAdamW] = SweepAdamW,
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.candidates = tuple(candidates)
        self._probe_config = probe.get_config()
        self._dim = probe.linear.kernel.shape[0]
        if classifier is not None:
            # The classifier's own probe is frozen too, because only the probes here learn.
            classifier.trainable = False
        self.classifier = classifier
        owners = [task for task in self.tasks for _ in self.candidates]
        # Each probe has its own name, by which a checkpoint assigns the weights.
        self.probes = [self._fresh_probe(task, f"probe_{i}") for i, task in enumerate(owners)]
        optimizer = make_optimizer(
            networks=[probe.trainable_variables for probe in self.probes],
            candidates=self.candidates * len(self.tasks),
        )
        self.built = True
        self.inference = DistributedInference(self)
        self.compile(optimizer)
        self.optimizer.build(self.trainable_variables)

    def _fresh_probe(self, task: str, name: str = "fresh") -> VJEPAProbe:
        config = {**self._probe_config, "num_classes": self.tasks[task], "name": name}
        probe = VJEPAProbe.from_config(config)
        probe.build((None, None, self._dim))
        return probe

    def probes_of(self, task: str) -> list[VJEPAProbe]:
        """Return the probes of a task, in the order of the candidates."""
        return self.probes[self._places_of(task)]

    def _places_of(self, task: str) -> slice:
        count = len(self.candidates)
        start = list(self.tasks).index(task) * count
        return slice(start, start + count)

    def restart(self, seed: int, total_steps: int) -> None:
        """Give all probes of a task the same fresh weights, for a training of `total_steps`."""
        for task in self.tasks:
            keras.utils.set_random_seed(seed)
            weights = self._fresh_probe(task).get_weights()
            for probe in self.probes_of(task):
                probe.set_weights(weights)
        # With float16, Keras wraps the optimizer to scale the loss.
        for optimizer in inner_optimizers(self.optimizer):
            optimizer.restart(total_steps)
        reset_loss_scale(self.optimizer)

    def call(self, inputs: Any, training: bool = False) -> dict[str, Any]:
        features = inputs
        if self.classifier is not None:
            inputs = inputs if isinstance(inputs, dict) else {"videos": inputs}
            features = self.classifier.features(**inputs)
        _, predictions, num_tokens, dim = features.shape
        tokens = ops.reshape(features, (-1, num_tokens, dim))
        together = VJEPAProbe.call_together(self.probes, tokens)
        outputs = {}
        for task, num_classes in self.tasks.items():
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
        for task, labels in split_labels(ops.cast(y, "int32"), self.tasks).items():
            logits = y_pred[task]
            labels = ops.reshape(labels, (-1,) + (1,) * (len(logits.shape) - 2))
            labels = ops.broadcast_to(labels, ops.shape(logits)[:-1])
            losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
            # This is the sum over candidates of their mean over samples and predictions.
            total += len(self.candidates) * ops.mean(losses)
        return collectives.loss_share(total)

    def after_step(self, moved: Tensor | None = None) -> dict[str, Tensor]:
        """Check whether each task has a probe that is finite.

        Every loss and every feature of a probe enters the gradient of its last bias. NaN and
        infinity are therefore found there, without reading all weights.
        """
        learns = [
            ops.any(ops.stack([_is_finite(probe.linear.bias) for probe in self.probes_of(task)]))
            for task in self.tasks
        ]
        return {"finite": ops.cast(ops.all(ops.stack(learns)), "float32")}

    def which_are_finite(self, step: int) -> dict[str, NDArray[np.bool_]]:
        """Tell for each probe of each task whether all of its weights are finite.

        Args:
            step: the last step, for messages.

        Raises:
            NotFiniteError: if a task has no finite probe. Otherwise the probes that are not finite
                are named in the log.
        """
        finite = {}
        for task in self.tasks:
            weights = [probe.get_weights() for probe in self.probes_of(task)]
            found = np.array([all(np.isfinite(w).all() for w in one) for one in weights])
            if not found.any():
                raise NotFiniteError(step, f"No probe of {task} is finite", REMEDY)
            for i in np.flatnonzero(~found):
                rate, decay = self.candidates[i]
                _LOG.warning(
                    "The probe of %s with learning rate %g and weight decay %g is not finite, and "
                    "cannot be the best.",
                    *(task, rate, decay),
                )
            finite[task] = found
        return finite

    def train_on(
        self, batches: TrainingBatches[Any], start: int, stop: int, parallel: DataParallel = ALONE
    ) -> None:
        """Train on this process's batches of the steps from `start` to `stop`.

        Raises:
            NotFiniteError: if all probes of a task have diverged.
        """
        try:
            stream = parallel.feed(batches.stream(start, stop))
            self.fit(
                stream,
                steps_per_epoch=stop - start,
                shuffle=False,
                verbose=0,
                callbacks=[FiniteLoss(REMEDY, start)],
            )
        except Exception:
            # Some backends wrap an error of the data into pages of their own text.
            if batches.error is not None:
                raise batches.error from None
            raise

    def logits(self, batches: OrderedBatches[Any]) -> dict[str, NDArray[np.float32]]:
        """Return the logits of every sample once and in order.

        Samples that could not be read have NaN, so that no prediction counts as right. Each of
        several processes reads its share of the samples and returns the logits of all.

        Returns:
            `(samples, candidates, classes)` for each task.
        """
        parts = [self.inference(inputs, weight) for inputs, _, weight in batches.stream()]
        return {
            task: np.concatenate([part[task] for part in parts])[: len(batches.samples)]
            for task in self.tasks
        }


def place_of_best(accuracy: NDArray[np.float64], finite: NDArray[np.bool_]) -> int:
    """Find the position of the most accurate of the finite probes; of equal ones, the first."""
    return int(np.argmax(np.where(finite, accuracy, -1.0)))


def _is_finite(variable: keras.Variable) -> Tensor:
    return ops.all(ops.isfinite(ops.convert_to_tensor(variable)))
