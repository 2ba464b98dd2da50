"""Train and test a detector of actions on boxes of key frames (App. D.2, Table 11).

    KERAS_BACKEND=jax python recipes/detect.py --preset PRESET
    KERAS_BACKEND=jax python recipes/detect.py --config ava --preset vjepa_large_patch16_224 \
        --data ava/ --boxes detected.csv

The results are a preset that `detect` takes, the detected actions as AVA's evaluation reads them,
and their mean average precision. If the run is stopped, the same command continues.
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
from keras_vjepa import VJEPAActionDetector, VJEPAVideoPreprocessor, command_line, files
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.configuration import replace
from keras_vjepa.data.batches.actions import ActionBatches, ActionTestClips, KeyFrameClips
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.ava import split_boxes
from keras_vjepa.data.sources.ava_files import write_actions
from keras_vjepa.data.sources.detection_sets import DetectionSet, check_detection_set
from keras_vjepa.evaluation.action_detection import DetectionTest
from keras_vjepa.fine_tuning import colours_of, compile_for_run, load_encoder
from keras_vjepa.fine_tuning_check import check_options
from keras_vjepa.fine_tuning_run import PRESET, RESULT, LabelledRun, released
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.detect_configs import CONFIGS, DetectConfig
from keras_vjepa.training.results import read_result
from keras_vjepa.training.resumable import check_folder


class Detection(LabelledRun):
    """Trains a detector on boxes of key frames; see `LabelledRun`."""

    # In place of the samples' paths, boxes and actions are compared.
    of_test = frozenset({"boxes", "least_score", "box_scores", "rule", "test_size", "extension"})
    free = of_test | {"test_batch_size"}
    noun = "key frame"

    def list_data(self) -> DetectionSet:
        found: DetectionSet = self.config.data.make()
        return found

    @property
    def clip(self) -> KeyFrameClips:
        """Return how clips are taken around the key frames."""
        clip: KeyFrameClips = self.config.clip.make(first_second=self.data.first_second)
        return clip

    def make_model(self, steps_per_epoch: int) -> VJEPAActionDetector:
        config, head = self.config, self.config.head
        arguments = {n: getattr(head, n) for n in head.parameters if n not in head.supplied}
        detector = VJEPAActionDetector(
            load_encoder(config, {}, load_weights=not config.untrained),
            class_names=[*self.data.actions.values()],
            layers=config.layers,
            trainable_backbone=config.trainable_backbone,
            dtype=config.dtype,
            # Without a name, Keras would number a second detector in a process, and with it the
            # paths of its variables.
            name="detector",
            **arguments,
        )
        detector.check_crop_size(config.crop_size, self.clip.num_frames)
        compile_for_run(
            detector, config, steps_per_epoch, "binary_crossentropy", epsilon=config.epsilon
        )
        return detector

    def make_batches(self, model: Any) -> ActionBatches:
        config = self.config
        batches: ActionBatches = config.batches.make(
            samples=self.data.train,
            transform=config.transform(**colours_of(config.preset)),
            clip=self.clip,
            limits=config.limits.make(),
            num_actions=model.num_classes,
            seed=config.seed,
            max_bad_share=config.data.max_bad_share,
        )
        return batches

    def make_validation(self, model: Any) -> Callable[[Any], Mapping[str, Any]]:
        test = self._test_of(model, ["true"])

        def validate(model: Any) -> dict[str, Any]:
            [(_, found)] = test(model).values()
            return {"validation_map": found["mean_average_precision"]}

        return validate

    def _test_of(self, model: Any, kinds: list[str]) -> DetectionTest:
        config, devices = self.config, self.parallel.device_count
        shown = {**model.shapes_of_frames(config.test_size), **colours_of(config.preset)}
        clips = {
            kind: ActionTestClips(
                split_boxes(self.data.test[kind], config.batches.max_boxes),
                -(-config.test_batch_size // devices) * devices,
                view=config.view(kind == "detected", **shown),
                clip=self.clip,
                limits=config.limits.make(),
                max_boxes=config.batches.max_boxes,
                num_workers=config.batches.num_workers,
                max_bad_share=config.data.max_bad_share,
            )
            for kind in kinds
        }
        return DetectionTest(self.data, clips, config.rule, config.box_scores, self.parallel)

    def finish(self, model: Any, options: dict[str, Any]) -> dict[str, float] | None:
        found = self._test_of(model, [*self.data.test])(model)
        final: Any = released(model, self.parallel)
        if final is None:
            return None
        taken = self.config.test_size, self.clip.num_frames, self.clip.frame_step
        final.preprocessor = VJEPAVideoPreprocessor(*taken, **colours_of(self.config.preset))
        final.save_to_preset(self.workdir / PRESET)
        for kind, (rows, _) in found.items():
            write_actions(self.workdir / f"detections_{kind}.csv", rows)
        content = {"config": options, "test": {kind: test for kind, (_, test) in found.items()}}
        files.write_text(self.workdir / RESULT, json.dumps(content, indent=1))
        page = write_report(self.workdir)
        scores, words = self.outcome(content)
        print(words)
        print(f"Saved {self.workdir}/{PRESET}, detections, {RESULT} and {page}.", file=sys.stderr)
        return scores

    def outcome(self, result: Mapping[str, Any]) -> tuple[dict[str, float], str]:
        tests = result["test"]
        scores = {kind: _number(test["mean_average_precision"]) for kind, test in tests.items()}
        words = (
            f"mAP {score:.4f} with {kind} boxes, {tests[kind]['key_frames']:,} key frames"
            for kind, score in scores.items()
        )
        return scores, "; ".join(words)


def _number(score: float | None) -> float:
    """Read a precision, which files leave out where there was nothing to find."""
    return float("nan") if score is None else score


def run(
    config: DetectConfig, workdir: Path, found: DetectionSet | None = None
) -> dict[str, float] | None:
    """Train, save and test in the folder `workdir`; continue a run that was stopped there.

    Args:
        config: what to do.
        workdir: folder of the run.
        found: the key frames; None for those that the config names.

    Returns:
        The mean average precision by the kind of boxes, `"true"` and `"detected"`; None in all
        processes but the first.
    """
    scores: dict[str, float] | None = Detection(config, workdir, found).run()
    return scores


def check(config: DetectConfig, workdir: Path) -> None:
    """Check the files and folders that a config names; its values are checked already.

    Raises:
        ValueError: for the first option that is out of range, by its name.
        OSError: if data, preset or a folder cannot be what they are said to be.
    """
    check_folder(workdir)
    if not config.preset:
        raise ValueError("`preset` must be given: the encoder of the detector. Received: none")
    check_options(config)
    stored = (read_result(workdir / RESULT) or {}).get("config") or {}
    # The results of a run stay valid when its videos and its preset are gone.
    if config.data.data != stored.get("data"):
        config.data.check(check_detection_set)
    if config.preset != stored.get("preset"):
        check_preset(config.preset)


def parse_arguments(
    arguments: list[str] | None = None, program: str = "detect.py"
) -> tuple[DetectConfig, Path]:
    """Read the config and the workdir that a command line asks for."""
    name, given, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, prefix="detect_"
    )
    return replace(CONFIGS[name](), **given), workdir


def main(arguments: list[str] | None = None, program: str = "detect.py") -> None:
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
