"""Evaluate over several splits of the training samples and keep each result (App. D.1, Table 8)."""

import functools
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import configuration, files
from keras_vjepa.backend import collectives, engine
from keras_vjepa.data.reading.av_decoder import has_av
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS
from keras_vjepa.data.reading.video import way_of_reading
from keras_vjepa.data.sources.content_hashes import content_hashes
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.settings import ProbeSettings
from keras_vjepa.locks import locked
from keras_vjepa.presets.fingerprints import fingerprint
from keras_vjepa.presets.integrity import damage
from keras_vjepa.training.results import read_result
from keras_vjepa.training.resumable import writable_folder
from keras_vjepa.training.run_state import Checkpoints

# The metrics of each task, as `FrozenProbe.score` gives them.
Metrics = dict[str, dict[str, Any]]

# Name of the hash of the metrics, which stands beside them in the file of a split. Files of older
# versions have none.
_CHECKSUM = "checksum"
# Settings that do not change the results, or that are part of `way_of_reading`.
_FREE = {
    "num_workers",
    "use_multiprocessing",
    "max_bad_share",
    "max_file_seconds",
    "max_frame_pixels",
}
# The folder where versions before the first release kept their results.
_EARLIER_FOLDER = "unfinished"

_LOG = logging.getLogger(__name__)


class Evaluator:
    """Evaluates a probe on several splits; one call trains, tests and returns all metrics.

    The metrics of each finished split are kept in a file. If features are not kept, the training of
    a split is saved after each epoch as well. The same evaluation in the same folder continues from
    there, and a finished one computes nothing. Different evaluations can share a folder.

    Args:
        probe: the probe to train and test.
        train, test: labelled samples.
        folder: where results are kept; None keeps nothing.

    Call arguments:
        splits: number of splits, evaluated one after the other.
        after_split: a function that all processes call with the number of a split and its metrics,
            before the split counts as done; at that time `probe` is trained on this split.

    Returns:
        The metrics of each split in the first process, and an empty list in the others.

    Example:

    >>> from keras_vjepa import VJEPABackbone
    >>> from keras_vjepa.evaluation.evaluator import Evaluator
    >>> from keras_vjepa.evaluation.frozen_probe import FrozenProbe
    >>> encoder = VJEPABackbone(32, 4, hidden_dim=24, num_layers=1, num_heads=2)
    >>> evaluator = Evaluator(FrozenProbe(encoder, num_classes=(5,)), train=[], test=[])
    >>> evaluator.folder is None
    True
    """

    def __init__(
        self,
        probe: FrozenProbe,
        train: Sequence[Sample],
        test: Sequence[Sample],
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.probe = probe
        self.train = train
        self.test = test
        self.folder = None if folder is None else Path(folder)

    def __call__(
        self, splits: int = 1, after_split: Callable[[int, Metrics], None] | None = None
    ) -> list[Metrics]:
        if splits < 1:
            raise ValueError(f"`splits` must be at least 1. Received: {splits}")
        parallel = self.probe.parallel
        # This raises the error for a missing class now, rather than after the splits before it have
        # been trained.
        self.probe.plan(self.train, splits)
        if self.folder is None:
            results = [self._metrics(index, None, after_split) for index in range(splits)]
            return results if parallel.is_first else []
        self._say_what_is_not_used()
        writable_folder(self.folder)
        lock = locked(self.folder, "the folder of an evaluation", name=f".{self.key}.lock")
        with lock if parallel.is_first else nullcontext():
            self._do_what_is_left(splits, after_split)
            return [self._done(i) or {} for i in range(splits)] if parallel.is_first else []

    def _do_what_is_left(
        self, splits: int, after_split: Callable[[int, Metrics], None] | None
    ) -> None:
        """Evaluate the splits whose metrics are not in the folder."""
        is_first = self.probe.parallel.is_first
        done = [self._done(index, say=is_first) is not None for index in range(splits)]
        # No process goes on, and writes results, before all have looked which splits are done.
        collectives.wait_for_all()
        for index in range(splits):
            if done[index]:
                continue
            path = self._path(index)
            progress = path.with_suffix("")
            metrics = self._metrics(index, Checkpoints(progress, keep_last=1), after_split)
            if is_first:
                files.write_text(path, json.dumps({**metrics, _CHECKSUM: _hash_of(metrics)}))
                shutil.rmtree(progress, ignore_errors=True)

    def is_finished(self, splits: int = 1) -> bool:
        """Tell whether all results that a call would compute are there and undamaged."""
        return self.folder is not None and all(self._done(i) is not None for i in range(splits))

    def forget(self, index: int) -> None:
        """Remove the metrics of a split, so that the next call evaluates it again.

        Args:
            index: number of the split.
        """
        if self.folder is not None and self.probe.parallel.is_first:
            self._path(index).unlink(missing_ok=True)

    def forget_if_damaged(self, left: Sequence[Path]) -> None:
        """Forget the first split if a preset that it has written is damaged or gone.

        Args:
            left: folders of the presets that the split has written.
        """
        problems = [f"{one} is missing" if not one.is_dir() else damage(one) for one in left]
        problem = next(filter(None, problems), None)
        if problem is not None and self.is_finished(1):
            # All processes must have looked before the first one deletes, and none may go on before
            # it has.
            collectives.wait_for_all()
            print(f"{problem}: it is made anew.", file=sys.stderr)
            self.forget(0)
            collectives.wait_for_all()

    def _done(self, index: int, say: bool = False) -> Metrics | None:
        """Read the metrics of a split, or return None if they are missing or damaged."""
        path = self._path(index)
        content, tasks = read_result(path) or {}, self.probe.settings.tasks
        metrics: dict[str, Any] = {task: content.get(task) for task in tasks}
        checksum = content.get(_CHECKSUM, _hash_of(metrics))
        if all(isinstance(one, dict) for one in metrics.values()) and checksum == _hash_of(metrics):
            return metrics
        if say and path.exists():
            _LOG.warning("Damaged, and computed anew: %s", path)
        return None

    def _metrics(
        self,
        index: int,
        checkpoints: Checkpoints | None,
        after_split: Callable[[int, Metrics], None] | None,
    ) -> Metrics:
        metrics = self.probe.fit(self.train, index, checkpoints).score(self.test)
        if after_split is not None:
            after_split(index, metrics)
        return metrics

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.key}-split{index}.json"

    @functools.cached_property
    def key(self) -> str:
        """Return a hash of everything that the results depend on."""
        probe = self.probe
        values = configuration.values(probe.settings)
        # A recipe's config also says where samples and encoder come from; only settings count here.
        names = configuration.options(ProbeSettings()).keys() - _FREE
        about = [
            {name: values[name] for name in sorted(names)},
            probe.batches.single_frame,
            engine.name(),
            str(keras.config.dtype_policy().name),
            fingerprint(probe.encoder),
            [_hash_of_contents(part) for part in (self.train, self.test)],
        ]
        # The usual way of reading is left out, so that results of earlier versions are found.
        reading = way_of_reading(probe.settings.limits.make())
        is_usual = has_av() and reading == way_of_reading(DEFAULT_LIMITS)
        about += [] if is_usual else [reading]
        # Labels are included because they change what a probe learns, although not the features.
        about += [[sample.label for sample in part] for part in (self.train, self.test)]
        return hashlib.blake2b(json.dumps(about).encode()).hexdigest()[:16]

    def _say_what_is_not_used(self) -> None:
        """Log if results of an earlier version exist that this evaluation cannot use."""
        assert self.folder is not None
        if not self.probe.parallel.is_first or any(self.folder.glob(f"{self.key}-*")):
            return
        earlier = [
            *(self.folder.parent / _EARLIER_FOLDER).glob("*"),
            *(path for path in self.folder.glob("*.json") if "-split" not in path.stem),
        ]
        if earlier:
            _LOG.warning(
                "%s was written by an earlier version and is not used: the evaluation begins anew.",
                earlier[0],
            )


def _hash_of(metrics: Metrics) -> str:
    text = json.dumps(metrics, sort_keys=True)
    return hashlib.blake2b(text.encode()).hexdigest()[:16]


def _hash_of_contents(samples: Sequence[Sample]) -> str:
    contents = content_hashes([sample.source for sample in samples])
    return hashlib.blake2b(contents.tobytes()).hexdigest()[:32]
