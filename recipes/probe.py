"""Frozen evaluation: train a probe on a frozen encoder and count (§4.3, App. D.1, Table 10).

    KERAS_BACKEND=jax python recipes/probe.py --preset workdir/digit_motion/preset
    KERAS_BACKEND=jax python recipes/probe.py --config ssv2 --preset PRESET \
        --data train.csv --test_data validation.csv

Without `--data`: the built-in videos. Any field of the config is an option, for example
`--learning_rates 1e-3,3e-3`. The configs are the authors' code's; `--variant paper` is the paper's
text where the two differ.
"""

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

# First, for it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import cv2
import keras
import numpy as np

from keras_vjepa import files
from keras_vjepa.backend import collectives, distribution
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.data.sources import labelled_sets
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.evaluation.features import fingerprint
from keras_vjepa.recipes import command_line
from keras_vjepa.recipes.probe_configs import CONFIGS, ProbeConfig, as_in_the_paper
from keras_vjepa.recipes.probe_evaluation import (
    UNTRAINED,
    Evaluator,
    confusion_matrix,
    make_classifier,
    make_encoder,
    make_evaluator,
)

# What recipes/pretrain.py leaves.
OWN_PRESET = Path("workdir") / labelled_sets.BUILT_IN / "preset"


def run(config: ProbeConfig, workdir: Path) -> list[dict[str, Any]]:
    """Evaluate and save; everything goes to `workdir`. A run that was stopped goes on there.

    All devices and processes share the work; the processes see the same disk.

    Returns:
        The result of each split, as `Evaluator` gives it; in the first process.
    """
    parallel = distribution.setup()
    (workdir / "unfinished").mkdir(parents=True, exist_ok=True)
    keras.config.set_dtype_policy(config.dtype)
    config = with_preset(config)
    encoder = make_encoder(config)
    samples = samples_of(config)
    if parallel.is_first:
        print(
            f"{config.preset} encoder: {encoder.count_params():,} parameters, "
            f"{len(samples[0]):,} training and {len(samples[1]):,} test samples; {parallel}",
            file=sys.stderr,
        )
    cache = cache_of(config, workdir)
    evaluator = make_evaluator(config, encoder, samples, cache, parallel=parallel)
    key = _key(config, encoder)
    results = []
    stored_splits = [workdir / "unfinished" / f"{key}-{i}.json" for i in range(config.splits)]
    done = [stored.exists() for stored in stored_splits]
    # So that all processes find the same ones done.
    collectives.wait_for_all()
    for split, stored in enumerate(stored_splits):
        if not done[split]:
            result = evaluator(split, stored.with_suffix(".npz"))
            if split == 0:
                save_classifiers(evaluator, encoder, result, workdir)
            if not parallel.is_first:
                continue
            files.write_text(stored, json.dumps(result))
            stored.with_suffix(".npz").unlink(missing_ok=True)
        if parallel.is_first:
            results.append(json.loads(stored.read_text()))
    parallel.release()
    if not parallel.is_first:
        return []
    for task in config.tasks:
        draw_confusion(results[0][task], workdir / f"confusion_{task}.png")
    content = {"config": dataclasses.asdict(config), "splits": results}
    files.write_text(workdir / "result.json", json.dumps(content, indent=1))
    for stored in stored_splits:
        stored.unlink()
    print(summary(config, results))
    print(f"Saved {workdir}/result.json, with each class's accuracy.", file=sys.stderr)
    return results


def with_preset(config: ProbeConfig) -> ProbeConfig:
    """The config with its encoder named."""
    if config.preset:
        return config
    found = config.data == labelled_sets.BUILT_IN and (OWN_PRESET / "config.json").is_file()
    return replace(config, preset=str(OWN_PRESET) if found else UNTRAINED)


def samples_of(config: ProbeConfig) -> tuple[list[Any], list[Any]]:
    """Training and test samples that the config names."""
    kind: Any = "image" if config.images else "video"
    sources = (config.data, config.test_data, config.videos, config.label_names)
    return labelled_sets.train_and_test(*sources, kind=kind)


def cache_of(config: ProbeConfig, workdir: Path) -> Path:
    """The folder for features."""
    return Path(config.cache) if config.cache else workdir / "features"


def _key(config: ProbeConfig, encoder: keras.Model) -> str:
    """A hash of what the numbers depend on."""
    without = {"num_workers", "splits", "cache", "preset", "max_bad_share"}
    fields = {k: v for k, v in dataclasses.asdict(config).items() if k not in without}
    text = json.dumps([fields, keras.config.backend(), fingerprint(encoder)], sort_keys=True)
    return hashlib.blake2b(text.encode()).hexdigest()[:16]


def save_classifiers(
    evaluator: Evaluator, encoder: keras.Model, result: dict[str, Any], workdir: Path
) -> None:
    """The best probe of each task with its encoder, as a classifier's preset."""
    for task in evaluator.config.tasks:
        classifier = make_classifier(evaluator.config, encoder, task)
        best = evaluator.sweep.probes_of(task)[result[task]["best"]]
        classifier.probe.set_weights(best.get_weights())
        # Made by all processes, as whatever is on the devices of all; written by one.
        if evaluator.parallel.is_first:
            classifier.save_to_preset(workdir / f"classifier_{task}")


def mean_and_deviation(values: Sequence[float]) -> str:
    """In per cent; the deviation, of the sample, where there are several."""
    mean = f"{100 * np.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * np.std(values, ddof=1):.1f}"


def summary(config: ProbeConfig, results: Sequence[dict[str, Any]]) -> str:
    """What is printed: top-1 and top-5 of each task, and the last split's candidates."""
    lines = []
    for task in config.tasks:
        found = [result[task] for result in results]
        top1, top5 = (mean_and_deviation([one[key] for one in found]) for key in ("top1", "top5"))
        lines.append(f"{task}: top-1 {top1} %, top-5 {top5} % of {found[0]['num_counted']} samples")
        for name in found[0]["readouts"]:
            accuracy = mean_and_deviation([one["readouts"][name] for one in found])
            lines.append(f"  {name} on pooled features: top-1 {accuracy} %")
        candidates = found[-1]["candidates"]
        for i, candidate in enumerate(candidates if len(candidates) > 1 else []):
            lines.append(
                f"  {'*' if i == found[-1]['best'] else ' '} "
                f"learning rate {candidate['learning_rate']:g}, "
                f"weight decay {candidate['weight_decay']:g}: "
                f"validation {100 * candidate['validation']:.1f} %, "
                f"test {100 * candidate['test']:.1f} %"
            )
    return "\n".join(lines)


def draw_confusion(result: dict[str, Any], path: Path, side: int = 600) -> None:
    """The confusion matrix as a picture: a row is a class, a column what it was called."""
    num_classes = len(result["per_class"])
    confusion = confusion_matrix(result["labels"], result["predictions"], num_classes, side)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    cell = side // len(confusion)
    grey = (255 * (1 - np.kron(share, np.ones((cell, cell))))).astype(np.uint8)
    image = cv2.copyMakeBorder(grey, 30, 10, 40, 10, cv2.BORDER_CONSTANT, value=235)
    if cell >= 30:
        for row, column in np.ndindex(*confusion.shape):
            colour = 255 if share[row, column] > 0.5 else 0
            place = (42 + column * cell, 30 + row * cell + cell // 2)
            _write(image, f"{100 * share[row, column]:.0f}", place, colour)
        for i in range(len(confusion)):
            _write(image, str(i), (4, 30 + i * cell + cell // 2))
    _write(image, "rows: classes, columns: predictions, per cent of the row", (42, 20))
    files.write_picture(path, image)


def _write(image: Any, text: str, place: tuple[int, int], colour: int = 0) -> None:
    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)


def parse_arguments(
    arguments: list[str] | None = None, program: str = "probe.py"
) -> tuple[ProbeConfig, Path]:
    """The config and the workdir that a command line asks for."""
    name, overrides, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, prefix="probe_"
    )
    config = CONFIGS[name]()
    variant = overrides.get("variant", config.variant)
    if variant not in ("paper", "reference"):
        raise ValueError(f"`variant` must be 'paper' or 'reference'. Received: {variant!r}")
    if variant == "paper":
        config = as_in_the_paper(config)
    # Only the configs of the built-in sets know where their data is.
    if name not in SETS and "data" not in overrides:
        raise ValueError(f"`data` must be given with the config {name}. Received: none")
    return replace(config, **overrides), workdir


def main(arguments: list[str] | None = None, program: str = "probe.py") -> None:
    """Run the recipe as a command; `program` stands in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        config, workdir = parse_arguments(arguments, program)
        distribution.launch_on_all_devices()
        run(config, workdir)
    except (ValueError, OSError, TooManyBadFilesError) as error:
        collectives.exit_with_error(f"{program}: {error}")


if __name__ == "__main__":
    main()
