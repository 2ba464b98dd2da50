"""Evaluate a frozen encoder by training a probe on it (§4.3, App. D.1, Table 10).

    KERAS_BACKEND=jax python recipes/probe.py --preset workdir/digit_motion/preset
    KERAS_BACKEND=jax python recipes/probe.py --config ssv2 --preset PRESET \
        --data train.csv --test_data validation.csv

Without `--data`, it takes the built-in videos. With `--data` and no config, it takes the config
`own`, which needs nothing but a folder of classes. Any argument of the parts of an evaluation is an
option, for example `--learning_rates 1e-3,3e-3`. The other configs follow the authors' code; with
`--variant paper`, they follow the paper's text where the two differ.
"""

import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras

from keras_vjepa import VJEPABackbone, command_line, files
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.backend.distribution import DataParallel
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.labelled_sets import check_sources, holds_only_images
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.evaluator import Evaluator, Metrics
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.labelled_videos import names_by_task
from keras_vjepa.evaluation.report import draw_confusion, summary
from keras_vjepa.evaluation_pixels import preprocessor_of, seen_as_by_the_preset
from keras_vjepa.locks import locked
from keras_vjepa.models.backbone_preset import load_backbone_to_evaluate
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.probe_configs import CONFIGS, ProbeConfig, as_in_the_paper, own
from keras_vjepa.training.resumable import check_folder, folder_of_results

# The preset that recipes/pretrain.py writes, and the name of an untrained encoder.
OWN_PRESET = Path("workdir") / labelled_sets.BUILT_IN / "preset"
UNTRAINED = "untrained"


def run(config: ProbeConfig, workdir: Path) -> list[Metrics]:
    """Evaluate and save in the folder `workdir`; continue an evaluation that was stopped there.

    All devices and processes share the work; the processes must see the same disk.

    Returns:
        The metrics of each split, as `FrozenProbe.score` returns them; only in the first process.
    """
    parallel = distribution.setup()
    with (
        folder_of_results(workdir),
        locked(workdir, "--workdir") if parallel.is_first else nullcontext(),
    ):
        return _evaluate(config, workdir, parallel)


def _evaluate(config: ProbeConfig, workdir: Path, parallel: DataParallel) -> list[Metrics]:
    """Evaluate and save, while no other run uses the folder."""
    keras.config.set_dtype_policy(config.dtype)
    config = completed(config)
    encoder = make_encoder(config)
    if config.preset != UNTRAINED:
        config = seen_as_by_the_preset(config, config.preset)
    train, test = samples_of(config)
    config = config.for_samples([*train, *test])
    if parallel.is_first:
        print(
            f"{config.preset} encoder: {encoder.count_params():,} parameters, "
            f"{len(train):,} training and {len(test):,} test samples; {parallel}",
            file=sys.stderr,
        )
    names = names_by_task(config)
    probe = FrozenProbe(encoder, config, cache=cache_of(config, workdir), parallel=parallel)
    evaluator = Evaluator(probe, train, test, workdir / "splits")
    evaluator.forget_if_damaged([workdir / f"classifier_{task}" for task in config.tasks])
    if parallel.is_first and evaluator.is_finished(config.splits):
        print(f"{workdir} holds this evaluation, finished.", file=sys.stderr)
    elif parallel.is_first and (workdir / "result.json").exists():
        print(
            f"{workdir}/result.json is of another evaluation, or of an earlier version: "
            "it will be replaced.",
            file=sys.stderr,
        )

    def save_classifiers(index: int, metrics: Metrics) -> None:
        for task in metrics if index == 0 else ():
            # All processes make it, because its weights are on the devices of all; one writes it.
            classifier = probe.classifier(task)
            classifier.preprocessor = preprocessor_of(probe.settings)
            classifier.class_names = names.get(task)
            if parallel.is_first:
                classifier.save_to_preset(workdir / f"classifier_{task}")

    results = evaluator(config.splits, save_classifiers)
    parallel.release()
    if not parallel.is_first:
        return []
    for task, metrics in results[0].items():
        draw_confusion(metrics, workdir / f"confusion_{task}.png")
    content = {"config": values(config), "splits": results}
    files.write_text(workdir / "result.json", json.dumps(content, indent=1))
    print(summary(results))
    print(f"Saved {workdir}/result.json, with each class's accuracy.", file=sys.stderr)
    return results


def completed(config: ProbeConfig) -> ProbeConfig:
    """Fill in the encoder, and show whole frames for the built-in videos, which fill them."""
    changes: dict[str, Any] = {}
    data, size = config.data.data, config.image_size
    if not config.preset:
        found = data == labelled_sets.BUILT_IN and (OWN_PRESET / "config.json").is_file()
        changes["preset"] = str(OWN_PRESET) if found else UNTRAINED
    if data in SETS and config.view.short_side is None and size is not None:
        changes["short_side"] = size if isinstance(size, int) else max(size)
    return replace(config, **changes)


def make_encoder(config: ProbeConfig) -> keras.Model:
    """Load the preset's backbone, or make an untrained one."""
    if config.preset != UNTRAINED:
        return load_backbone_to_evaluate(config.preset, config.image_size, dtype=config.dtype)
    keras.utils.set_random_seed(config.seed)
    return VJEPABackbone(**untrained_arguments(config), dtype=config.dtype)


def samples_of(config: ProbeConfig) -> tuple[list[Sample], list[Sample]]:
    """List the training and test samples that the config names."""
    return config.data.make(kind="image" if config.images else "video")


def cache_of(config: ProbeConfig, workdir: Path) -> Path:
    """Return the folder for features."""
    return Path(config.cache) if config.cache else workdir / "features"


def check(config: ProbeConfig, workdir: Path) -> None:
    """Check the files and folders that a config names; its values are checked already.

    Args:
        config: config of the evaluation.
        workdir: folder for all results.

    Raises:
        ValueError: for the first option that is out of range, by its name.
        OSError: if data, preset or a folder do not exist or cannot be made.
    """
    check_folder(workdir)
    if config.cache:
        check_folder(config.cache, "cache")
    config.data.check(check_sources)
    if config.preset not in ("", UNTRAINED):
        check_preset(config.preset)
    else:
        VJEPABackbone.number_of_weights(**untrained_arguments(config))


def untrained_arguments(config: ProbeConfig) -> dict[str, Any]:
    """Return the arguments of an untrained encoder of the size of the built-in recipe."""
    return {
        "image_size": config.image_size or 224,
        "num_frames": config.clip.frames_per_clip or 16,
        "patch_size": 8 if config.data.data in SETS else 16,
        "hidden_dim": 96,
        "num_layers": 4,
        "num_heads": 4,
    }


def parse_arguments(
    arguments: list[str] | None = None,
    program: str = "probe.py",
    description: str = __doc__ or "",
    prefix: str = "probe_",
) -> tuple[ProbeConfig, Path]:
    """Read the config and the workdir that a command line asks for."""
    config, changes, workdir = parse_config(arguments, program, description, prefix)
    return replace(config, **changes), workdir


def parse_config(
    arguments: list[str] | None, program: str, description: str, prefix: str, lists: Any = None
) -> tuple[ProbeConfig, dict[str, Any], Path]:
    """Do as `command_line.parse`, and return the config itself, not its name."""
    given = sys.argv[1:] if arguments is None else arguments
    parsed = program, description, CONFIGS
    name, changes, workdir = command_line.parse(*parsed, given, prefix, lists)
    if name in SETS and changes.get("data", name) not in SETS:
        # If the user names a config, it stands after this one and takes precedence.
        given = ["--config", own.__name__, *given]
        name, changes, workdir = command_line.parse(*parsed, given, prefix, lists)
        changes.setdefault("images", holds_only_images(changes["data"]))
    config = CONFIGS[name]()
    if changes.get("variant", config.variant) == "paper":
        config = as_in_the_paper(config)
    # Only the configs of the built-in sets have a default for `data`.
    if name not in SETS and "data" not in changes:
        raise ValueError(f"`data` must be given with the config {name}. Received: none")
    return config, changes, workdir


def main(arguments: list[str] | None = None, program: str = "probe.py") -> None:
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
