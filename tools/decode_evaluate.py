"""Measure what a decoder draws, on held-out clips of a built-in set (§6, Fig. 6, App. F).

    keras-vjepa decode evaluate --preset PRESET --decoder DECODER --output evaluation.json

A classifier learns digit and motion from the real pixels of hidden regions, and then names what it
sees in decoded ones: from the features that the predictor gives, from the target encoder's own,
from none, and from predicted features of another clip. Beside its accuracy stand how often two
seeds show the same class, which share of the variance of pixels the seeds make, how well the
directions agree in which real and decoded regions move, and what another classifier reads of the
features themselves. It learns from few clips, so that more may be in them. A small region does not
always show what moves: accuracy is also given of those clips whose real region is named rightly.
"""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import MOST_LONG, MOST_SEED, check_number, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.configuration import replace
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.sources.digit_motion_rendering import SETS
from keras_vjepa.data.sources.labelled_sets import train_and_test
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.decoding import Regions, load_decoder, region_clips
from keras_vjepa.evaluation.decoded_regions import (
    FeatureClassifier,
    Pixels,
    RegionClassifier,
    agreement,
    direction_cosine,
    varying_share,
)
from keras_vjepa.evaluation.task_labels import DIGIT_MOTION_TASKS, split_labels
from keras_vjepa.pictures.loading import load_pictured
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.decode_configs import DecodeConfig
from keras_vjepa.tasks.decoder import FeatureDecoder
from keras_vjepa.tasks.region_features import TARGET, RegionFeatures, check_made_for
from keras_vjepa.tools.picture import option_of_run, step_of

# Clips that features are computed of, and decoded, at a time.
_AT_ONCE = 50
# Clips from which the classifier of features learns; they are kept in memory.
_FEATURE_CLIPS = 4000
KINDS = ("target", "predicted", "predicted of another clip", "none")
# What can be asked for. At 0 features would not count at all, which is the kind "none".
GUIDANCE = "(0, 100]"


class HiddenRegions(NamedTuple):
    """Holds hidden regions of clips.

    Attributes:
        pixels: uint8 `(clips, frames, height, width, 3)`.
        labels: class of each clip, by task.
        features: float32 `(clips, tokens, dim)` of the first clips or of all, `predicted` and
            `target`; empty if not asked for.
    """

    pixels: Pixels
    labels: dict[str, NDArray[np.int32]]
    features: dict[str, NDArray[np.float32]]


def regions_of(
    clips: ClipBatches,
    regions: Regions,
    count: int,
    features: RegionFeatures | None = None,
    most_features: int = MOST_LONG,
) -> HiddenRegions:
    """Draw clips and regions, and cut the pixels out.

    Args:
        clips: batches of clips, masked by `region_sampler`.
        regions: cuts the regions out.
        count: number of clips, rounded up to whole batches.
        features: computes features of the regions, if they are asked for.
        most_features: number of clips of which they are, rounded up to whole batches.
    """
    labels_by_path = {sample.path: sample.label for sample in clips.samples}
    pixels, labels, found = [], [], []
    steps = -(-count // clips.batch_size)
    for step, batch in enumerate(clips.stream(0, steps)):
        cut = regions.pixels(np.asarray(batch["videos"]), np.asarray(batch[TARGET]))
        pixels.append(np.rint(127.5 * (cut + 1)).astype("uint8"))
        labels += [labels_by_path[path] for path in clips.paths(step)]
        if features is not None and step * clips.batch_size < most_features:
            found.append(features.of(batch))
    names = found[0] if found else ()
    return HiddenRegions(
        np.concatenate(pixels),
        split_labels(np.asarray(labels, "int32"), DIGIT_MOTION_TASKS),
        {name: np.concatenate([one[name] for one in found]) for name in names},
    )


def measured(
    classifier: RegionClassifier,
    real: HiddenRegions,
    samples: Pixels,
    shown: Mapping[str, NDArray[np.bool_]] | None = None,
) -> dict[str, Any]:
    """Measure decoded regions.

    Args:
        classifier: a classifier that learnt from real regions.
        real: the regions that were hidden.
        samples: uint8 `(clips, seeds, frames, height, width, 3)`.
        shown: for each task, which real regions show their class.

    Returns:
        For each task `accuracy`, its `error` (standard error over clips) and `agreement`, and
        `shown`, the same accuracy of clips that show their class, with `error` and number of
        `clips`; and of all `varying_share`, `direction` and `num_directions`. With one seed, what
        compares seeds is left out, and `shown` where no clip shows its class.
    """
    result: dict[str, Any] = {}
    several = samples.shape[1] > 1
    for task, classes in classifier.classes(samples).items():
        right = (classes == real.labels[task][:, np.newaxis]).mean(axis=1)
        result[task] = _share(right)
        if shown is not None and shown[task].any():
            result[task]["shown"] = _share(right[shown[task]]) | {"clips": int(shown[task].sum())}
        if several:
            result[task]["agreement"] = agreement(classes)
    if several:
        result["varying_share"] = varying_share(samples)
    result["direction"], result["num_directions"] = direction_cosine(real.pixels, samples)
    return result


def sampled(decoder: FeatureDecoder, real: HiddenRegions, kind: str, options: Namespace) -> Pixels:
    """Decode the features of one kind, for all clips and seeds, and show the progress."""
    given = real.features["target" if kind == "target" else "predicted"]
    if kind == KINDS[2]:
        given = np.roll(given, len(given) // 2, axis=0)
    seeds = range(options.seed, options.seed + options.seeds)
    told = kind.split()[0]
    parts = []
    for start in range(0, len(given), _AT_ONCE):
        part = given[start : start + _AT_ONCE]
        parts.append(decoder.sample(part, seeds, told, options.steps, guidance=options.guidance))
        done = min(start + _AT_ONCE, len(given))
        print(f"{kind}: {done} of {len(given)} clips decoded", file=sys.stderr, flush=True)
    return np.concatenate(parts)


def read_of_features(
    known: HiddenRegions, real: HiddenRegions, epochs: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Measure what can be read of the features themselves, predicted and the target encoder's.

    Args:
        known: regions from which a classifier learns, with features.
        real: regions that it is asked about.
        epochs: passes over the first.

    Returns:
        `accuracy` and its `error` of each task, by the kind of features.
    """
    result: dict[str, dict[str, dict[str, float]]] = {}
    for kind, features in known.features.items():
        print(f"{kind}: a classifier of features learns", file=sys.stderr, flush=True)
        classifier = FeatureClassifier(DIGIT_MOTION_TASKS, features.shape[1:])
        labels = {task: classes[: len(features)] for task, classes in known.labels.items()}
        classifier.learn(features, labels, epochs)
        found = classifier.classes(real.features[kind])
        result[kind] = {task: _share(found[task] == real.labels[task]) for task in found}
    return result


def _share(right: NDArray[Any]) -> dict[str, float]:
    return {"accuracy": float(right.mean()), "error": float(right.std() / np.sqrt(len(right)))}


def batches_of(
    samples: Sequence[Sample], features: RegionFeatures, decoder: FeatureDecoder, options: Namespace
) -> tuple[ClipBatches, Regions]:
    """Make batches of clips as the decoder's training reads them, and what cuts regions out."""
    given = {
        "preset": options.preset,
        "batch_size": min(_AT_ONCE, len(samples)),
        "seed": options.seed,
    }
    if stride := step_of(options.preset):
        given["temporal_stride"] = stride
    _, rows, columns = decoder.network.grid_shape
    _, height, width = decoder.network.clip_shape
    return region_clips(
        replace(DecodeConfig(), **given),
        samples,
        features.pretrainer.encoder,
        (rows, columns),
        (height, width),
    )


class HeldOut(NamedTuple):
    """Holds what decoders of one preset are measured with.

    Attributes:
        classifier: names what is to be seen in pixels.
        real: regions of held-out clips, with features.
        shown: for each task, which real regions show their class: those that are named rightly.
        read: what a classifier reads of the features, as `read_of_features` returns it.
    """

    classifier: RegionClassifier
    real: HiddenRegions
    shown: dict[str, NDArray[np.bool_]]
    read: dict[str, dict[str, dict[str, float]]]


def held_out(features: RegionFeatures, decoder: FeatureDecoder, options: Namespace) -> HeldOut:
    """Train the classifiers, and take regions of held-out clips, of the decoder's size."""
    train, test = train_and_test(options.data)
    clips, regions = batches_of(train, features, decoder, options)
    known = regions_of(clips, regions, options.train_clips, features, _FEATURE_CLIPS)
    classifier = RegionClassifier(DIGIT_MOTION_TASKS, known.pixels.shape[1:4])
    classifier.learn(known.pixels, known.labels, options.epochs)
    clips, regions = batches_of(test, features, decoder, options)
    real = regions_of(clips, regions, options.clips, features)
    seen = classifier.classes(real.pixels)
    shown = {task: seen[task] == real.labels[task] for task in seen}
    return HeldOut(classifier, real, shown, read_of_features(known, real, options.epochs))


def found_by(held: HeldOut, decoder: FeatureDecoder, options: Namespace) -> dict[str, Any]:
    """Decode the regions' features of each kind, and measure what is to be seen."""
    real = held.real
    result = {"real": measured(held.classifier, real, real.pixels[:, np.newaxis])}
    for kind in KINDS:
        samples = sampled(decoder, real, kind, options)
        result[kind] = measured(held.classifier, real, samples, held.shown)
        if kind in held.read:
            result[kind]["features"] = held.read[kind]
    return result


def evaluate(options: Namespace) -> dict[str, Any]:
    """Train the classifiers, decode, and measure.

    Raises:
        ValueError: for a decoder of another preset.
    """
    keras.utils.set_random_seed(options.seed)
    features = RegionFeatures(load_pictured(options.preset, needs_predictor=True).pretrainer)
    decoder = load_decoder(options.decoder)
    check_made_for(decoder, features, options.preset)
    # Before the classifiers learn, which takes minutes.
    check_whole(1, decoder.noise_schedule.num_steps, steps=options.steps)
    held = held_out(features, decoder, options)
    asked = {name: value for name, value in vars(options).items() if name != "output"}
    found = found_by(held, decoder, options)
    return {"options": asked, "num_clips": len(held.real.pixels), "found": found}


def table(found: dict[str, Any]) -> str:
    """Write the measurements as a table, a row for each kind of features."""
    lines = [
        "region               digit         motion        of clips that show it:      same class   "
        "variance    direction   of the features:",
        "                                                 digit         motion        by the seed  "
        "of seeds    (cosine)    digit         motion",
    ]
    for kind, one in found.items():
        tasks = [one[task] for task in DIGIT_MOTION_TASKS]
        of_features = one.get("features", {})
        cells = [kind[:20].ljust(21), *map(_cell, tasks)]
        cells += [_cell(task.get("shown")) for task in tasks]
        same = "/".join(f"{100 * t['agreement']:.0f}" for t in tasks if "agreement" in t)
        varying = f"{100 * one['varying_share']:.0f} %" if "varying_share" in one else ""
        cells.append(f"{same:13s}{varying:12s}{one['direction']:5.2f}       ")
        cells += [_cell(of_features.get(task)) for task in DIGIT_MOTION_TASKS]
        lines.append("".join(cells).rstrip())
    return "\n".join(lines)


def _cell(share: Mapping[str, float] | None) -> str:
    text = f"{100 * share['accuracy']:5.1f} ± {100 * share['error']:3.1f}" if share else ""
    return text.ljust(14)


def parser_of_evaluation(program: str) -> OneLineParser:
    """Make the parser of `decode evaluate`."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("--preset", required=True, help="of a pretraining run, or RUN@STEP")
    parser.add_argument("--decoder", required=True, help="preset of a decoder of these features")
    parser.add_argument("--output", type=Path, help="JSON file to write [none]")
    add_measuring(parser, clips=200, train_clips=16_000, epochs=10)
    parser.add_argument("--seeds", type=int, default=4, help="samples of each clip [4]")
    parser.add_argument("--steps", type=int, default=20, help="timesteps gone through [20]")
    parser.add_argument("--seed", type=int, default=0, help="of everything random [0]")
    return parser


def add_measuring(parser: OneLineParser, clips: int, train_clips: int, epochs: int) -> None:
    """Add the options that say what decoders are measured with, with these defaults."""
    parser.add_argument(
        "--data", default="digit_motion_black", choices=list(SETS), help="built-in set"
    )
    parser.add_argument("--clips", type=int, default=clips, help=f"held-out clips [{clips}]")
    parser.add_argument(
        "--train-clips",
        type=int,
        default=train_clips,
        help=f"clips the classifier learns from [{train_clips}]",
    )
    parser.add_argument("--epochs", type=int, default=epochs, help=f"passes over these [{epochs}]")
    add_guidance(parser)


def add_guidance(parser: OneLineParser) -> None:
    """Add the option that says how strongly features count."""
    parser.add_argument(
        "--guidance",
        type=float,
        default=1.0,
        help="more than 1 makes the features count more, at twice the time [1]",
    )


def check_guidance(guidance: float, decoder: str) -> None:
    """Check that a decoder was trained for guidance, as far as that is known without its model.

    Args:
        guidance: value of the option of `add_guidance`.
        decoder: preset of the decoder.

    Raises:
        ValueError: if the decoder's run, where the preset is still in its folder, never trained it
            without features.
    """
    kinds = option_of_run(decoder, "kinds")
    if kinds and isinstance(kinds, list):
        check_kinds(guidance, kinds)


def check_kinds(guidance: float, kinds: Sequence[float]) -> None:
    """Check that a decoder that is trained with these kinds of features can be guided.

    Args:
        guidance: value of the option of `add_guidance`.
        kinds: the shares of the kinds that it is trained with.

    Raises:
        ValueError: if it is to be guided and never trained without features.
    """
    if guidance != 1 and not kinds[0]:
        raise ValueError(
            "`guidance` must be 1 for a decoder that was not trained without features, which it is "
            f"compared to: train one whose `kinds` begin with more than 0. Received: {guidance}"
        )


def check_output(path: Path) -> Path:
    """Check that a file of results can be written, before anything is computed.

    Args:
        path: the file; missing folders are made when it is written.

    Returns:
        The path, where ~ at the beginning is replaced by the home directory.

    Raises:
        OSError: if a folder has that name, or the file cannot be written there.
    """
    found = path.expanduser()
    try:
        there = next(one for one in found.absolute().parents if one.exists())
        writable = there.is_dir() and os.access(there, os.W_OK) and not found.is_dir()
    except OSError:  # for a name that is too long
        writable = False
    if not writable:
        raise OSError(f"`output` must be a file that can be written. Received: {path}")
    return found


def main(arguments: list[str], program: str) -> int:
    """Run `decode evaluate`, with `program` in front of its messages, and return the exit code."""
    parser = parser_of_evaluation(program)
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, MOST_LONG, clips=options.clips, steps=options.steps, seeds=options.seeds)
        check_whole(1, MOST_LONG, train_clips=options.train_clips, epochs=options.epochs)
        check_whole(0, MOST_SEED - options.seeds, seed=options.seed)
        check_number(GUIDANCE, guidance=options.guidance)
        if options.output is not None:
            options.output = check_output(options.output)
        check_preset(options.preset)
        check_preset(options.decoder, "decoder")
        check_guidance(options.guidance, options.decoder)
        found = evaluate(options)
        print(table(found["found"]))
        if options.output is not None:
            files.write_text(options.output, json.dumps(found, indent=1))
    return 0
