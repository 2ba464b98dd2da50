"""Mix the pretraining set from the official lists of its sources (§3.4, Table 2).

    keras-vjepa videomix --output mix \
        --k400 k400/train.csv --k400-videos k400/train --k400-held-out k400/validate.csv \
        --ssv2 train.json --ssv2-videos 20bn --ssv2-held-out validation.json
    keras-vjepa pretrain --config vitl16 --data mix/videomix2m.csv

The paper's VideoMix2M consists of all five sources. Videos of the validation sets are left out of
every source, and so are videos that another source has already; videos are compared by their ids.
The list `mix/videomix2m.csv` labels each file by the number of its source, `mix/videomix2m.json`
counts the videos of each source that were kept and left out, and `mix/left_out.csv` says why each
other video is not in the mix. At the end, the command to train with the mix is printed, with the
weights of the sources if any are given.

`mix/kinetics.csv` lists Kinetics with its classes, where the classes of all its lists are merged by
name; `mix/kinetics_classes.csv` gives their numbers in each list. Names that two editions spell
differently are two classes unless `--same-class` says otherwise: K710's authors merged 15 such
pairs.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

from keras_vjepa import files
from keras_vjepa.arguments import MOST_SEED, check_number, check_whole, counted
from keras_vjepa.command_line import WRONG_USAGE, OneLineParser, text_of
from keras_vjepa.data.batches.epochs import check_label_weights
from keras_vjepa.data.preparation.journal import table
from keras_vjepa.data.preparation.merged_classes import MergedClasses, merge_classes
from keras_vjepa.data.preparation.video_mix import (
    SOURCES,
    SUBSETS,
    WITH_VALIDATION,
    MixSource,
    VideoMix,
    missing_lists,
    mix_videos,
)
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.sources.list_writing import why_not_listed, write_list
from keras_vjepa.locks import locked

_NAMES = {
    "k400": "Kinetics-400 (train.csv)",
    "k600": "Kinetics-600 (train.csv)",
    "k700": "Kinetics-700 (train.csv)",
    "ssv2": "Something-Something v2 (train.json)",
    "howto100m": "HowTo100M (HowTo100M_v1.csv)",
}


def parse(arguments: list[str] | None, program: str) -> tuple[argparse.Namespace, OneLineParser]:
    """Read the command line; wrong input ends the process with a line that names the option."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder of the list and counts")
    for name, words in _NAMES.items():
        parser.add_argument(
            f"--{name}", type=Path, help=f"training list of {words} (default: not in the mix)"
        )
        parser.add_argument(
            f"--{name}-videos", type=Path, help=f"folder of its files (default: beside --{name})"
        )
        if name in WITH_VALIDATION:
            parser.add_argument(
                f"--{name}-held-out",
                type=Path,
                nargs="+",
                help="its lists of validation videos, and of test videos if these are to be left "
                "out too (default: none)",
            )
    parser.add_argument(
        "--subset", choices=SUBSETS, default="videomix2m", metavar="SUBSET",
        help=f"sources to take, of those given: {', '.join(SUBSETS)}",
    )  # fmt: skip
    parser.add_argument("--share", type=float, default=1.0, help="of the mix, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="SOURCE=WEIGHT",
        default=(),
        help="how often each video of a source comes in an epoch (default: once, whatever source)",
    )
    parser.add_argument(
        "--same-class",
        nargs="+",
        metavar="NAME=OTHER",
        default=(),
        help="classes of Kinetics that are one, called by the second name (default: none)",
    )
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_number("(0, 1]", share=options.share)
        options.same = same_classes(options.same_class)
        check_whole(0, MOST_SEED, seed=options.seed)
        options.weights = weights_of(options.weights)
        options.sources = sources_of(options)
    return options, parser


def weights_of(texts: list[str]) -> dict[str, float]:
    """Read weights as they are typed: `ssv2=2`."""
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if name not in SOURCES:
            raise ValueError(
                f"`weights` must be SOURCE=WEIGHT, of {', '.join(SOURCES)}. Received: {text}"
            )
        try:
            check_label_weights((found[name], 1.0))
        except ValueError as error:
            raise ValueError(str(error).replace("label_weights", "weights")) from None
    return found


def same_classes(texts: list[str]) -> dict[str, str]:
    """Read pairs of classes as they are typed: `dying hair=dyeing hair`."""
    found = {}
    for text in texts:
        name, equals, other = (part.strip() for part in text.partition("="))
        if not (name and equals and other):
            raise ValueError(f"`same_class` must be NAME=OTHER. Received: {text}")
        found[name] = other
    return found


def sources_of(options: argparse.Namespace) -> dict[str, MixSource]:
    """Find the sources that are given; raise `ValueError` with the name of a missing option."""
    found = {}
    for name in SOURCES:
        training, videos = getattr(options, name), getattr(options, f"{name}_videos")
        if training is None:
            if videos is not None:
                raise ValueError(f"`{name}` must be given with `{name}_videos`. Received: none")
            continue
        training = training.expanduser()
        videos = training.parent if videos is None else videos.expanduser()
        for option, path in ((name, training), (f"{name}_videos", videos)):
            if not path.exists():
                raise ValueError(f"`{option}` must be there. Received: {printable(path)}")
        found[name] = MixSource(training, videos)
    if not set(found) & set(SUBSETS[options.subset]):
        wanted = ", ".join(f"`{name}`" for name in SUBSETS[options.subset])
        raise ValueError(f"At least one list must be given of {wanted}. Received: none")
    unused = set(options.weights) - (set(found) & set(SUBSETS[options.subset]))
    if unused:
        raise ValueError(f"`weights` must be of sources in the mix. Received: {min(unused)}")
    return found


def remarks(options: argparse.Namespace, held_out: dict[str, list[Path]]) -> list[str]:
    """Say in which way the mix differs from the paper's."""
    subset, lines = SUBSETS[options.subset], []
    for name in subset:
        if name not in options.sources:
            lines.append(f"--{name} is not given: {options.subset} of the paper has it.")
    for name in options.sources:
        if name not in subset:
            lines.append(f"--{name} has no effect with --subset {options.subset}.")
    for name in missing_lists(held_out):
        lines.append(
            f"--{name}-held-out is not given: videos of that validation set may be in the mix."
        )
    return lines


def classes_in_words(merged: MergedClasses) -> str:
    """Say in words how many classes the lists of Kinetics have, by themselves and together."""
    each = ", ".join(f"{name} {len(own):,}" for name, own in merged.number_of.items())
    return (
        f"Classes of Kinetics: {each}; {len(merged.names):,} by name, {merged.num_shared:,} of "
        "them in every list"
    )


def write_classes(mix: VideoMix, merged: MergedClasses, output: Path) -> None:
    """Write the list of Kinetics with merged classes, and a table of their numbers in each list."""
    samples = mix.labelled_by_class(merged)
    if samples:
        write_list(output / "kinetics.csv", samples)
    own = zip(*merged.own_numbers.values(), strict=True)
    rows = [
        [str(number), name, *("" if place is None else str(place) for place in places)]
        for number, (name, places) in enumerate(zip(merged.names, own, strict=True))
    ]
    header = ["number", "class", *merged.own_numbers]
    files.write_text(output / "kinetics_classes.csv", table(header, rows))


def in_words(mix: VideoMix, options: argparse.Namespace, path: Path) -> str:
    """Say in words how many videos of each source were kept, and how to train with the mix."""
    lines = []
    for name, count in mix.counts.items():
        reasons = "".join(f", {many:,} {why}" for why, many in count.left_out.most_common())
        drawn = f", {count.drawn:,} drawn" if options.share < 1 else ""
        lines.append(
            f"{name} (label {count.number}): {count.listed:,} listed{reasons}; "
            f"{count.kept:,} kept{drawn}"
        )
    lines.append(f"{printable(path)}: {counted(len(mix.samples), 'video')}")
    weights = f" --label_weights {text_of(mix.label_weights(options.weights))}"
    lines.append(
        "Train with: keras-vjepa pretrain --config vitl16 --data "
        f"{printable(path)}{weights if options.weights else ''}"
    )
    return "\n".join(lines)


def write(mix: VideoMix, options: argparse.Namespace, output: Path) -> Path:
    """Write the list, the counts and the videos left out, and return the path of the list."""
    path = output / f"{options.subset}.csv"
    for sample in mix.samples:
        if reason := why_not_listed(sample):
            raise ValueError(f"{printable(sample.path)} cannot be listed: {reason}. Rename it.")
    write_list(path, mix.samples)
    content = {
        **mix.as_json(),
        "subset": options.subset,
        "share": options.share,
        "seed": options.seed,
        "label_weights": mix.label_weights(options.weights) if options.weights else None,
        "lists": {name: str(source.training) for name, source in options.sources.items()},
    }
    files.write_text(path.with_suffix(".json"), json.dumps(content, indent=2) + "\n")
    rows = [list(row) for row in mix.left_out]
    files.write_text(output / "left_out.csv", table(["source", "id", "reason"], rows))
    return path


def main(arguments: list[str] | None = None, program: str = "videomix.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    options, parser = parse(arguments, program)
    given = {name: getattr(options, f"{name}_held_out") for name in WITH_VALIDATION}
    held_out = {name: paths for name, paths in given.items() if paths}
    output = options.output.expanduser()
    try:
        mix = mix_videos(options.sources, held_out, options.subset, options.share, options.seed)
        merged = merge_classes(mix.classes, options.same)
        output.mkdir(parents=True, exist_ok=True)
        with locked(output, "--output"):
            path = write(mix, options, output)
            if merged.names:
                write_classes(mix, merged, output)
    except (OSError, ValueError) as error:
        text = parser.explain(error).replace("`same`", "--same-class")
        print(f"{program}: {text}", file=sys.stderr)
        return WRONG_USAGE
    print("".join(f"{line}\n" for line in remarks(options, held_out)), end="", file=sys.stderr)
    print(in_words(mix, options, path))
    if merged.names:
        print(classes_in_words(merged))
    return 0


if __name__ == "__main__":
    sys.exit(main())
