"""Train the small encoder on labels alone: the upper limit of a frozen evaluation (§4.3).

    KERAS_BACKEND=jax python recipes/supervised.py --config digit_motion_long

It trains the encoder of a config of `recipes/pretrain.py` and an attentive probe together from
scratch, once for each task of the built-in set, and prints the accuracy on the test videos. The
options `probe_videos` and `probe_epochs` set the labelled videos and the passes over them.
"""

import json
import math
import sys
from pathlib import Path

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras

from keras_vjepa import AdamW, VJEPAVideoClassifier, WarmupCosine, command_line, files
from keras_vjepa.arguments import check_choice
from keras_vjepa.configuration import values
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.evaluation.comparison import LabelledClips
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS, labels_of
from keras_vjepa.locks import locked
from keras_vjepa.pretraining_check import configured
from keras_vjepa.recipes.pretrain_configs import CONFIGS
from keras_vjepa.recipes.pretrain_derived import check_files, check_options
from keras_vjepa.recipes.pretrain_evaluation import labelled_clips
from keras_vjepa.recipes.pretrain_objects import make_encoder
from keras_vjepa.recipes.pretrain_parts import PretrainConfig
from keras_vjepa.training.loss_log import FiniteLoss, NotFiniteError
from keras_vjepa.training.resumable import folder_of_results

BATCH_SIZE = 32
# What to do about a loss that is not finite, for the error message.
REMEDY = "the `learning_rate` must be lower"


def train(config: PretrainConfig, task: str, training: LabelledClips, test: LabelledClips) -> float:
    """Train an encoder from scratch on one task, and return the accuracy on the test clips."""
    classifier = VJEPAVideoClassifier(
        make_encoder(config), DIGIT_MOTION_TASKS[task], trainable_backbone=True
    )
    steps = config.probe_epochs * -(-len(training.samples) // BATCH_SIZE)
    # The learning rate is that of pretraining; a probe's would be too high for the encoder.
    schedule = WarmupCosine(0.0, config.learning_rate.peak, 0.0, min(100, steps // 10), steps)
    classifier.compile(
        AdamW(schedule, config.weight_decay.start, clip_norm=config.optimizer.clip_norm),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    classifier.fit(
        training.videos,
        labels_of(training.samples, DIGIT_MOTION_TASKS)[task],
        batch_size=BATCH_SIZE,
        epochs=config.probe_epochs,
        verbose=2,
        callbacks=[FiniteLoss(REMEDY)],
    )
    labels = labels_of(test.samples, DIGIT_MOTION_TASKS)[task]
    loss, accuracy = classifier.evaluate(test.videos, labels, BATCH_SIZE, verbose=0)
    if not math.isfinite(loss):
        raise NotFiniteError(steps, f"The loss of the test videos is {loss}", REMEDY)
    return float(accuracy)


def run(config: PretrainConfig, workdir: Path) -> dict[str, float]:
    """Train an encoder for every task, and print and save the accuracies."""
    with folder_of_results(workdir), locked(workdir, "--workdir"):
        training, test = labelled_clips(config)
        found = {}
        for task in DIGIT_MOTION_TASKS:
            found[task] = train(config, task, training, test)
            print(f"{task}: {found[task]:.3f} with {len(training.samples):,} labels", flush=True)
        content = {"config": values(config), "accuracy": found}
        files.write_text(workdir / "result.json", json.dumps(content, indent=1))
    return found


def main(arguments: list[str] | None = None, program: str = "supervised.py") -> None:
    """Run the recipe as a command, with `program` in front of its messages."""
    name, overrides, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, prefix="supervised_"
    )
    with command_line.refusing(program, CONFIGS, arguments):
        config = configured(CONFIGS[name](), overrides, say=False)  # it has its own schedule
        check_choice(SETS, data=config.data)
        check_options(config)
        check_files(config, workdir)
    try:
        run(config, workdir)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"{program}: {command_line.explain(error, CONFIGS)}")


if __name__ == "__main__":
    main()
