"""Fine-tune an encoder end to end on labelled videos (App. D.3, Table 12).

    KERAS_BACKEND=jax python recipes/finetune.py --preset PRESET --data videos/
    KERAS_BACKEND=jax python recipes/finetune.py --config k400_large --preset PRESET \
        --data train.csv --test_data validation.csv

The results are a preset that `classify` takes, and the accuracy on the test videos. If the run is
stopped, the same command goes on.
"""

import json
import logging
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras

from keras_vjepa import VJEPAVideoClassifier, command_line, files
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import defaults, replace, values
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.labelled_sets import check_sources
from keras_vjepa.evaluation.labelled_videos import LabelledVideos, labelled_videos
from keras_vjepa.evaluation.report import draw_confusion
from keras_vjepa.evaluation.testing import ClassifierTest
from keras_vjepa.fine_tuning import (
    introduction,
    make_batches,
    make_classifier,
    make_test_batches,
    weights_of_encoder,
    with_all_views,
)
from keras_vjepa.fine_tuning_check import DERIVED, check_options, settled
from keras_vjepa.locks import locked
from keras_vjepa.monitoring import damaged_curve
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.monitoring.run_callbacks import callbacks_of_fine_tuning, damaged_tables
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.finetune_configs import CONFIGS, FineTuneConfig
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
from keras_vjepa.training.resumable import check_folder, writable_folder
from keras_vjepa.training.signals import stop_signals

# Options that may change when a run goes on. In place of the samples' paths, samples are compared.
_FREE = {
    "data", "videos", "label_names", "kind", "fps", "path_column", "label_column",
    "num_workers", "use_multiprocessing", "read_ahead",
    "max_bad_share", "max_file_seconds", "max_frame_pixels", "epochs", "steps",
    "remat", "accumulation_steps", "shard_parameters", "validate_every",
    "tensorboard", "callbacks", "log_every", "checkpoint_every", "keep_last", "keep_every",
}  # fmt: skip


def run(
    config: FineTuneConfig, workdir: Path, labelled: LabelledVideos | None = None
) -> float | None:
    """Train, save and test in the folder `workdir`; continue a run that was stopped there.

    Args:
        config: what to do.
        workdir: folder of the run.
        labelled: the videos; None for those that the config names.

    Returns:
        The accuracy on the test videos; None in all processes but the first.
    """
    parallel = distribution.setup(config.shard_parameters)
    writable_folder(workdir)
    with locked(workdir, "--workdir") if parallel.is_first else nullcontext():
        keras.config.set_dtype_policy(config.dtype)
        config = _as_begun(config, workdir, parallel.is_first)
        if not _is_finished(config, workdir, labelled, parallel.is_first):
            with stop_signals():
                return _train(config, workdir, labelled or labelled_videos(config), parallel)
        accuracy = (read_result(workdir / "result.json") or {})["accuracy"]
        if parallel.is_first:
            print(
                f"{workdir} holds this run, finished: accuracy {accuracy:.3f}. "
                "Take another --workdir to train again.",
                file=sys.stderr,
            )
        return float(accuracy) if parallel.is_first else None


def _train(
    config: FineTuneConfig, workdir: Path, videos: LabelledVideos, parallel: DataParallel
) -> float | None:
    """Train, save and test a run that is not finished."""
    config = settled(config, len(videos.train), parallel)
    keras.utils.set_random_seed(config.seed)
    steps_per_epoch = len(videos.train) // config.batches.batch_size
    classifier = make_classifier(config, videos, steps_per_epoch)
    if parallel.is_first:
        print(introduction(config, classifier, videos, parallel), file=sys.stderr)
    options = {**values(config), **videos.described(), **weights_of_encoder(config, {})}
    options["steps"] = config.epochs * steps_per_epoch
    test = ClassifierTest(make_test_batches(config, classifier, videos, parallel))
    config.run.make(
        model=classifier,
        batches=make_batches(config, classifier, videos, parallel),
        workdir=workdir,
        steps=options["steps"],
        callbacks=callbacks_of_fine_tuning(
            config, options, steps_per_epoch, test, workdir, parallel.is_first
        ),
        description=defining(options, _FREE),
        defaults=defining({**defaults(config), **options}, _FREE),
        # A schedule that the user gives takes precedence over that of the stored options.
        upgrade=lambda stored: defining(
            {**stored, "schedule_epochs": config.schedule_epochs}, _FREE
        ),
        parallel=parallel,
    )
    final = with_all_views(config, classifier)
    metrics = ClassifierTest(make_test_batches(config, final, videos, parallel))(final)
    weights = collectives.values(final.weights)
    parallel.release()
    if not parallel.is_first:
        return None
    final = VJEPAVideoClassifier.from_config(final.get_config())
    final.set_weights(weights)
    final.save_to_preset(workdir / "preset")
    return finish(options, workdir, metrics)


def finish(described: dict[str, Any], workdir: Path, metrics: dict[str, Any]) -> float:
    """Write the results of the test and the page of the run, and return the accuracy."""
    draw_confusion(metrics, workdir / "confusion.png")
    accuracy, count = metrics["top1"], metrics["num_counted"]
    content = {"config": described, "accuracy": accuracy, "test_videos": count, "test": metrics}
    files.write_text(workdir / "result.json", json.dumps(content, indent=1))
    print(f"accuracy {accuracy:.3f} of {count:,} test videos")
    print(f"Saved {workdir}/preset, result.json and {write_report(workdir)}.", file=sys.stderr)
    return float(accuracy)


def _is_finished(
    config: FineTuneConfig, workdir: Path, labelled: LabelledVideos | None, is_first: bool
) -> bool:
    """Tell whether all results are there and undamaged; raise if they belong to another run."""
    path = workdir / "result.json"
    if not path.is_file():
        check_not_lost(workdir, ["preset"])
        return False
    stored = (read_result(path) or {}).get("config")
    problem = None if stored else f"{path} is damaged"
    if stored:
        current = values(config)
        current |= {name: stored.get(name) for name in DERIVED if current[name] is None}
        with suppress(OSError, ValueError):
            # The results of a run stay valid when its videos are gone.
            labelled = labelled or labelled_videos(config)
        if labelled is not None:
            current |= labelled.described()
        current |= weights_of_encoder(config, stored)
        known = {name: value for name, value in stored.items() if name in current}
        free = {*_FREE, "schedule_epochs"}
        check_same_run(defining(known, free), defining(current, free), workdir)
        check_input_files(workdir, labelled.train if labelled else [])
        if current["epochs"] > stored["epochs"]:
            return False
        check_not_less(current["epochs"], stored["epochs"], workdir, "epochs")
        problem = damaged_result(workdir, [path.name], ["preset"])
        if not (workdir / "preset").is_dir():
            problem = f"{workdir / 'preset'} is missing"
        problem = problem or damaged_curve(workdir, stored["steps"])
        lost = damaged_tables(workdir, stored["steps"])
        if lost is not None and is_first:
            print(
                f"{lost}, and cannot be made anew: a run writes it step by step.", file=sys.stderr
            )
    return need_no_remaking(workdir, problem, is_first)


def _as_begun(config: FineTuneConfig, workdir: Path, says: bool) -> FineTuneConfig:
    """Fill in the options that a run began with, unless the user gives other values."""
    config = with_its_schedule(config, workdir, says, "epochs")
    stored, current = stored_options(workdir), values(config)
    kept = {name: stored.get(name) for name in DERIVED if current[name] is None}
    return replace(config, **kept)


# --- The command line ----------------------------------------------------------------------------


def check(config: FineTuneConfig, workdir: Path) -> None:
    """Check the files and folders that a config names; its values are checked already.

    Raises:
        ValueError: for the first option that is out of range, by its name.
        OSError: if data, preset or a folder do not exist or cannot be made.
    """
    check_folder(workdir)
    if not config.preset:
        raise ValueError("`preset` must be given: the encoder to fine-tune. Received: none")
    check_options(config)
    stored = (read_result(workdir / "result.json") or {}).get("config") or {}
    # The results of a run stay valid when its videos and its preset are gone.
    if config.data.data != stored.get("data"):
        config.data.check(check_sources)
    if config.preset != stored.get("preset"):
        check_preset(config.preset)


def parse_arguments(
    arguments: list[str] | None = None, program: str = "finetune.py"
) -> tuple[FineTuneConfig, Path]:
    """Read the config and the workdir that a command line asks for."""
    name, given, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, prefix="finetune_"
    )
    return replace(CONFIGS[name](), **given), workdir


def main(arguments: list[str] | None = None, program: str = "finetune.py") -> None:
    """Run the recipe as a command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with command_line.refusing(program, CONFIGS, arguments):
        config, workdir = parse_arguments(arguments, program)
        check(config, workdir)
    distribution.launch_on_all_devices()
    try:
        run(config, workdir)
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        collectives.exit_with_error(f"{program}: {command_line.explain(error, CONFIGS)}")


if __name__ == "__main__":
    main()
