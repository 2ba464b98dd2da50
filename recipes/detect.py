"""Train and test a detector of actions on boxes of key frames (App. D.2, Table 11).

    KERAS_BACKEND=jax python recipes/detect.py --preset PRESET
    KERAS_BACKEND=jax python recipes/detect.py --config ava --preset vjepa_large_patch16_224 \
        --data ava/ --boxes detected.csv

The results are a preset that `detect` takes, the detected actions as AVA's evaluation reads them,
and their mean average precision. If the run is stopped, the same command goes on.
"""

import json
import logging
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras

from keras_vjepa import (
    AdamW,
    FineTuningSchedule,
    VJEPAActionDetector,
    VJEPAVideoPreprocessor,
    command_line,
    files,
    training,
)
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.batches.actions import ActionBatches, ActionTestClips, KeyFrameClips
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources.ava import split_boxes
from keras_vjepa.data.sources.ava_files import write_actions
from keras_vjepa.data.sources.detection_sets import DetectionSet, check_detection_set
from keras_vjepa.evaluation.action_detection import detected_actions
from keras_vjepa.evaluation.detection import mean_average_precision
from keras_vjepa.locks import locked
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.detect_configs import CONFIGS, DetectConfig
from keras_vjepa.training.description import defining
from keras_vjepa.training.resumable import check_folder, writable_folder

_FREE = {
    "num_workers", "checkpoint_every", "log_every", "data", "videos", "boxes", "least_score",
    "max_bad_share", "box_scores", "rule", "test_size", "test_batch_size", "extension",
}  # fmt: skip


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
    parallel = distribution.setup()
    writable_folder(workdir)
    with locked(workdir, "--workdir") if parallel.is_first else nullcontext():
        keras.config.set_dtype_policy(config.dtype)
        keras.utils.set_random_seed(config.seed)
        found = found or config.data.make()
        clips = config.clip.make(first_second=found.first_second)
        batches_a_epoch = len(found.train) // config.batch_size
        if not batches_a_epoch:
            raise ValueError(
                f"`batch_size` must be at most the {len(found.train)} training key frames. "
                f"Received: {config.batch_size}"
            )
        detector = make_detector(config, found, batches_a_epoch)
        batches = ActionBatches(
            found.train,
            config.batch_size,
            transform=config.transform(),
            clip=clips,
            num_actions=detector.num_classes,
            max_boxes=config.max_boxes,
            seed=config.seed,
            num_workers=config.num_workers,
            max_bad_share=config.data.max_bad_share,
        )
        training.run(
            detector,
            parallel.share(batches),
            workdir,
            config.epochs * batches_a_epoch,
            checkpoint_every=config.checkpoint_every,
            log_every=config.log_every,
            description=defining(values(config), _FREE),
            parallel=parallel,
        )
        weights = collectives.values(detector.weights)
        parallel.release()
        if not parallel.is_first:
            return None
        detector.set_weights(weights)
        return finish(config, workdir, detector, found, clips)


def make_detector(
    config: DetectConfig, found: DetectionSet, batches_a_epoch: int
) -> VJEPAActionDetector:
    """Make a detector of the preset's encoder and a new head, and compile it."""
    head = {
        name: getattr(config.head, name)
        for name in config.head.parameters
        if name not in config.head.supplied
    }
    detector = VJEPAActionDetector.from_preset(
        config.preset,
        load_weights=not config.untrained,
        class_names=[*found.actions.values()],
        layers=config.layers,
        trainable_backbone=config.trainable_backbone,
        preprocessor=None,
        dtype=config.dtype,
        **head,
    )
    schedule = FineTuningSchedule(
        config.warmup_learning_rate,
        config.learning_rate,
        config.final_learning_rate,
        config.warmup_epochs * batches_a_epoch,
        config.epochs * batches_a_epoch,
    )
    optimizer: Any = AdamW(
        schedule, config.weight_decay, epsilon=config.epsilon, layer_decay=config.layer_decay
    )
    detector.compile(optimizer)
    detector.optimizer.build(detector.trainable_variables)
    return detector


def finish(
    config: DetectConfig,
    workdir: Path,
    detector: VJEPAActionDetector,
    found: DetectionSet,
    clips: KeyFrameClips,
) -> dict[str, float]:
    """Save the preset, test it with each kind of boxes, and write the results."""
    detector.preprocessor = VJEPAVideoPreprocessor(
        config.test_size, clips.num_frames, clips.frame_step
    )
    detector.save_to_preset(workdir / "preset")
    patch_size = getattr(detector.backbone, "patch_size", 16)
    scores, content = {}, {"config": values(config)}
    for kind, samples in found.test.items():
        tested = ActionTestClips(
            split_boxes(samples, config.max_boxes),
            config.test_batch_size,
            view=config.view(patch_size, detected=kind == "detected"),
            clip=clips,
            max_boxes=config.max_boxes,
            num_workers=config.num_workers,
            max_bad_share=config.data.max_bad_share,
        )
        rows = detected_actions(detector, tested, found.actions, config.box_scores)
        write_actions(workdir / f"detections_{kind}.csv", rows)
        result = mean_average_precision(
            found.truth, rows, found.evaluated, found.excluded, config.rule
        )
        scores[kind] = result.mean
        content[kind] = {
            "mean_average_precision": None if math.isnan(result.mean) else result.mean,
            "by_action": {found.actions[n]: value for n, value in result.by_action.items()},
            "key_frames": len({sample.key for sample in samples}),
            "unreadable": [*tested.bad_files],
        }
        print(f"mAP {result.mean:.4f} with {kind} boxes, {len(samples):,} key frames")
    files.write_text(workdir / "result.json", json.dumps(content, indent=1))
    print(f"Saved {workdir}/preset, detections and {workdir}/result.json.", file=sys.stderr)
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
    config.data.check(check_detection_set)
    check_preset(config.preset)


def main(arguments: list[str] | None = None, program: str = "detect.py") -> None:
    """Run the recipe as a command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    name, given, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, prefix="detect_"
    )
    with command_line.refusing(program, CONFIGS, arguments):
        config = replace(CONFIGS[name](), **given)
        check(config, workdir)
    distribution.launch_on_all_devices()
    try:
        run(config, workdir)
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        collectives.exit_with_error(f"{program}: {command_line.explain(error, CONFIGS)}")


if __name__ == "__main__":
    main()
