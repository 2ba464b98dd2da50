"""Fine-tune an encoder end to end on labelled videos (App. D.3, Table 12).

    KERAS_BACKEND=jax python recipes/finetune.py --preset PRESET --data videos/
    KERAS_BACKEND=jax python recipes/finetune.py --config k400_large --preset PRESET \
        --data train.csv --test_data validation.csv

The results are a preset that `classify` takes, and the accuracy on the test videos. If the run is
stopped, the same command continues.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
from keras_vjepa import VJEPAVideoClassifier, command_line, files
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.configuration import replace
from keras_vjepa.data.batches.fine_tuning import FineTuningBatches
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.labelled_sets import check_sources
from keras_vjepa.evaluation.labelled_videos import LabelledVideos, labelled_videos
from keras_vjepa.evaluation.report import draw_confusion
from keras_vjepa.evaluation.testing import ClassifierTest
from keras_vjepa.fine_tuning import (
    make_batches,
    make_classifier,
    make_test_batches,
    rate_scale,
    with_all_views,
)
from keras_vjepa.fine_tuning_check import check_options
from keras_vjepa.fine_tuning_run import PRESET, RESULT, LabelledRun, released
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.finetune_configs import CONFIGS, FineTuneConfig
from keras_vjepa.training.results import read_result
from keras_vjepa.training.resumable import check_folder


class FineTuning(LabelledRun):
    """Fine-tunes a classifier end to end; see `LabelledRun`."""

    # In place of the samples' paths, samples are compared.
    free = frozenset(
        {"label_names", "path_column", "label_column", "use_multiprocessing", "cache_gib"}
    )

    @property
    def rate_scale(self) -> float:
        return rate_scale(self.config)

    def list_data(self) -> LabelledVideos:
        return labelled_videos(self.config)

    def make_model(self, steps_per_epoch: int) -> VJEPAVideoClassifier:
        return make_classifier(self.config, self.data, steps_per_epoch)

    def make_batches(self, model: Any) -> FineTuningBatches:
        return make_batches(self.config, model, self.data)

    def make_validation(self, model: Any) -> Callable[[Any], Mapping[str, Any]]:
        test = self._test_of(model)

        def validate(model: Any) -> dict[str, Any]:
            found, names = test(model), {"loss": "loss", "accuracy": "top1", "top5": "top5"}
            return {f"validation_{name}": found[key] for name, key in names.items()}

        return validate

    def _test_of(self, model: Any) -> ClassifierTest:
        return ClassifierTest(make_test_batches(self.config, model, self.data, self.parallel))

    def finish(self, model: Any, options: dict[str, Any]) -> float | None:
        several = with_all_views(self.config, model)
        metrics = self._test_of(several)(several)
        final: Any = released(several, self.parallel)
        if final is None:
            return None
        final.save_to_preset(self.workdir / PRESET)
        draw_confusion(metrics, self.workdir / "confusion.png")
        accuracy, count = metrics["top1"], metrics["num_counted"]
        content = {"config": options, "accuracy": accuracy, "test_videos": count, "test": metrics}
        files.write_text(self.workdir / RESULT, json.dumps(content, indent=1))
        page = write_report(self.workdir)
        print(f"accuracy {accuracy:.3f} of {count:,} test videos")
        print(f"Saved {self.workdir}/{PRESET}, {RESULT} and {page}.", file=sys.stderr)
        return float(accuracy)

    def outcome(self, result: Mapping[str, Any]) -> tuple[float, str]:
        return float(result["accuracy"]), f"accuracy {result['accuracy']:.3f}"


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
    accuracy: float | None = FineTuning(config, workdir, labelled).run()
    return accuracy


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
