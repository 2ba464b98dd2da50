"""Run a training with labels from its preset to its results (App. D.2, App. D.3, Tables 11, 12).

A classifier's fine-tuning and a detector's training are such runs. This module has what both
share: one folder, one process at a time, checkpoints, a run that continues or is made longer,
results that are checked before they count. A recipe defines what is listed, made and tested.
"""

import abc
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, ClassVar

import keras

from keras_vjepa.backend import collectives, distribution
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import defaults, replace, values
from keras_vjepa.fine_tuning import (
    colours_used,
    introduction,
    weights_of_encoder,
    with_colours_used,
)
from keras_vjepa.fine_tuning_check import DERIVED, settled
from keras_vjepa.locks import locked
from keras_vjepa.monitoring import damaged_curve
from keras_vjepa.monitoring.run_callbacks import callbacks_of_fine_tuning, damaged_tables
from keras_vjepa.training.continuing import stored_options, with_its_schedule
from keras_vjepa.training.description import check_same_run, defining
from keras_vjepa.training.input_files import check_input_files
from keras_vjepa.training.results import (
    check_not_less,
    check_not_lost,
    damaged_result,
    need_no_remaking,
    read_result,
)
from keras_vjepa.training.resumable import folder_of_results
from keras_vjepa.training.signals import stop_signals

RESULT, PRESET = "result.json", "preset"
# Options that may change when a run goes on, whatever is trained.
_FREE = frozenset({
    "data", "videos", "kind", "fps", "num_workers", "read_ahead",
    "max_bad_share", "max_file_seconds", "max_frame_pixels", "epochs", "steps",
    "remat", "accumulation_steps", "shard_parameters", "validate_every",
    "tensorboard", "callbacks", "log_every", "checkpoint_every", "keep_last", "keep_every",
})  # fmt: skip


class LabelledRun(abc.ABC):
    """Trains a model on labelled clips, saves its preset, and tests it.

    Args:
        config: config of the recipe.
        workdir: folder of the run. A run that was stopped there continues.
        data: what is trained and tested on, as `list_data` gives it; None for what the config
            names.

    Attributes:
        free: options that may change when a run continues, beside those of every run.
        of_test: those of them that change the test; with other values it is made again.
        noun: what is counted in messages.
        parallel: the devices and processes.
    """

    free: ClassVar[frozenset[str]] = frozenset()
    of_test: ClassVar[frozenset[str]] = frozenset()
    noun: ClassVar[str] = "video"

    def __init__(self, config: Any, workdir: Path, data: Any = None) -> None:
        self.config = config
        self.workdir = workdir
        self.data = data
        self.parallel = distribution.ALONE

    # --- What a recipe defines -------------------------------------------------------------------

    @property
    def rate_scale(self) -> float:
        """Return the factor by which the rates of the config are multiplied."""
        return 1.0

    @abc.abstractmethod
    def list_data(self) -> Any:
        """List what is trained and tested on: it has `train`, `described()` and `in_words()`."""

    @abc.abstractmethod
    def make_model(self, steps_per_epoch: int) -> keras.Model:
        """Make the model, compiled."""

    @abc.abstractmethod
    def make_batches(self, model: keras.Model) -> Any:
        """Make the batches to train on."""

    @abc.abstractmethod
    def make_validation(self, model: keras.Model) -> Callable[[Any], Mapping[str, Any]]:
        """Make the function that tests the model between epochs; see `EpochLog`."""

    @abc.abstractmethod
    def finish(self, model: keras.Model, options: dict[str, Any]) -> Any:
        """Test the trained model in all processes, and write the results in the first.

        Args:
            model: the trained model.
            options: all options of the run.

        Returns:
            What `run` returns.
        """

    @abc.abstractmethod
    def outcome(self, result: Mapping[str, Any]) -> tuple[Any, str]:
        """Read what `run` returns from the results of a finished run, and say it in words."""

    # --- The run ---------------------------------------------------------------------------------

    def run(self) -> Any:
        """Train, save and test, unless all of it is done.

        Returns:
            What `finish` returns; None in all processes but the first.

        Raises:
            ValueError: for options that do not fit the data, or another run in the folder.
            OSError: if something cannot be read or written.
        """
        self.parallel = distribution.setup(self.config.shard_parameters)
        is_first = self.parallel.is_first
        with (
            folder_of_results(self.workdir),
            locked(self.workdir, "--workdir") if is_first else nullcontext(),
        ):
            keras.config.set_dtype_policy(self.config.dtype)
            self._go_on_as_begun()
            if not self.is_finished():
                with stop_signals():
                    return self._train()
            found, words = self.outcome(read_result(self.workdir / RESULT) or {})
            if is_first:
                print(
                    f"{self.workdir} holds this run, finished: {words}. "
                    "Take another --workdir to train again.",
                    file=sys.stderr,
                )
            return found if is_first else None

    def _train(self) -> Any:
        """Train, save and test a run that is not finished."""
        self.data = self.data or self.list_data()
        count = len(self.data.train)
        self.config = config = settled(self.config, count, self.parallel, f"training {self.noun}")
        keras.utils.set_random_seed(config.seed)
        steps_per_epoch = count // config.batches.batch_size
        model = self.make_model(steps_per_epoch)
        if self.parallel.is_first:
            said = introduction(config, model, self.data, self.parallel, self.rate_scale)
            print(said, file=sys.stderr)
        options = {**values(config), **self.data.described(), **weights_of_encoder(config, {})}
        options |= (used := colours_used(config))
        options["steps"] = config.epochs * steps_per_epoch
        free = {*_FREE, *self.free}
        config.run.make(
            model=model,
            batches=self.parallel.share(self.make_batches(model)),
            workdir=self.workdir,
            steps=options["steps"],
            callbacks=callbacks_of_fine_tuning(
                config,
                options,
                steps_per_epoch,
                self.make_validation(model),
                self.workdir,
                self.parallel.is_first,
            ),
            description=defining(options, free),
            defaults=defining({**defaults(config), **options}, free),
            # A schedule that the user gives takes precedence over that of the stored options.
            upgrade=lambda stored: defining(
                {
                    **with_colours_used(stored, config, used),
                    "schedule_epochs": config.schedule_epochs,
                },
                free,
            ),
            parallel=self.parallel,
        )
        return self.finish(model, options)

    def is_finished(self) -> bool:
        """Tell whether all results are there and undamaged; raise if they are of another run."""
        path = self.workdir / RESULT
        if not path.is_file():
            check_not_lost(self.workdir, [PRESET])
            return False
        stored = (read_result(path) or {}).get("config")
        problem = None if stored else f"{path} is damaged"
        if stored:
            epochs = self._checked_epochs(stored)
            if epochs > stored["epochs"]:
                return False
            check_not_less(epochs, stored["epochs"], self.workdir, "epochs")
            problem = damaged_result(self.workdir, [path.name], [PRESET])
            if not (self.workdir / PRESET).is_dir():
                problem = f"{self.workdir / PRESET} is missing"
            problem = problem or damaged_curve(self.workdir, stored["steps"])
            lost = damaged_tables(self.workdir, stored["steps"])
            if lost is not None and self.parallel.is_first:
                print(
                    f"{lost}, and cannot be made anew: a run writes it step by step.",
                    file=sys.stderr,
                )
            problem = problem or self._another_test(stored)
        return need_no_remaking(self.workdir, problem, self.parallel.is_first)

    def _another_test(self, stored: Mapping[str, Any]) -> str | None:
        """Name an option of the test that has changed; None if there is none."""
        current = defining(values(self.config), set())
        for name in sorted(self.of_test):
            if current[name] != stored.get(name, current[name]):
                return f"`{name}` was {stored[name]}, and is {current[name]} now"
        return None

    def _checked_epochs(self, stored: dict[str, Any]) -> int:
        """Raise unless this is the run that was stored; return the epochs that are asked for."""
        current = values(self.config)
        current |= {name: stored.get(name) for name in DERIVED if current.get(name, 0) is None}
        with suppress(OSError, ValueError):
            # The results of a run stay valid when its videos are gone.
            self.data = self.data or self.list_data()
        if self.data is not None:
            current |= self.data.described()
        current |= weights_of_encoder(self.config, stored)
        current |= (used := colours_used(self.config, stored))
        stored = with_colours_used(stored, self.config, used)
        known = {name: value for name, value in stored.items() if name in current}
        free = {*_FREE, *self.free, "schedule_epochs"}
        check_same_run(defining(known, free), defining(current, free), self.workdir)
        check_input_files(self.workdir, self.data.train if self.data else [])
        return int(current["epochs"])

    def _go_on_as_begun(self) -> None:
        """Fill in the options that a run began with, unless the user gives other values."""
        config = with_its_schedule(self.config, self.workdir, self.parallel.is_first, "epochs")
        stored, current = stored_options(self.workdir), values(config)
        kept = {name: stored.get(name) for name in DERIVED if current[name] is None}
        self.config = replace(config, **kept)


def released(model: keras.Model, parallel: DataParallel) -> keras.Model | None:
    """Take a trained model off the devices, to be saved by the first process.

    Returns:
        A model with the same weights on one device; None in all processes but the first.
    """
    weights = collectives.values(model.weights)
    parallel.release()
    if not parallel.is_first:
        return None
    alone: keras.Model = type(model).from_config(model.get_config())
    alone.set_weights(weights)
    return alone
