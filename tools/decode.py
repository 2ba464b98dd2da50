"""Train a decoder of the predictor's features, and see what it imagines (§6, Fig. 6, App. F).

    keras-vjepa decode train --preset PRESET
    keras-vjepa decode sample clip.mp4 --preset PRESET --decoder DECODER --output decoded.mp4
    keras-vjepa decode evaluate --preset PRESET --decoder DECODER
    keras-vjepa decode table workdir/decoders --preset PRESET

Each of the four has options of its own: `decode train --help`, `decode sample --help`, `decode
evaluate --help` and `decode table --help` list them.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
from keras_vjepa.arguments import MOST_LONG, MOST_SEED, check_number, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.decoding import load_decoder, region_sampler
from keras_vjepa.models.diffusion_network import KINDS
from keras_vjepa.monitoring.run_tables import read_run
from keras_vjepa.pictures import check_picture_path, read_watched, write_rows
from keras_vjepa.pictures.decoded import HiddenRegion, decoded_rows, region_features
from keras_vjepa.pictures.loading import load_pictured
from keras_vjepa.pictures.videos import check_exists, check_is_other
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes import decode as training_recipe
from keras_vjepa.tasks.region_features import TARGET, RegionFeatures, check_made_for
from keras_vjepa.tools import decode_evaluate, decode_table
from keras_vjepa.tools.picture import run_of, step_of

_OF_SAMPLES = """Draw what a decoder makes of predicted features of a hidden region (§6, Fig. 6b).

    keras-vjepa decode sample clip.mp4 --preset PRESET --decoder DECODER --output decoded.mp4

A region of the clip is hidden over all time; from what is around it the predictor gives features of
the region, and the decoder turns these alone into pixels, once for each seed. What all seeds show
is in the prediction; what varies is not. The ending of the output determines the format: .mp4
(needs PyAV) and .gif show all frames; .png and .jpg show eight with their times.
"""
ACTIONS = {
    "train": training_recipe.__doc__ or "",
    "sample": _OF_SAMPLES,
    "evaluate": decode_evaluate.__doc__ or "",
    "table": decode_table.__doc__ or "",
}
# More rows than anybody would look at.
_MOST_SEEDS = 64


def parser_of_actions(program: str) -> OneLineParser:
    """Make the parser of the first word, whose help says what each action does."""
    lines = "\n".join(f"  {name:10s}{text.splitlines()[0]}" for name, text in ACTIONS.items())
    parser = OneLineParser(
        prog=program,
        usage=f"{program} {{{','.join(ACTIONS)}}} ...",
        description=f"{__doc__}\nactions:\n{lines}",
    )
    parser.add_argument("action", choices=ACTIONS, help="what is done")
    return parser


def parser_of_samples(program: str) -> OneLineParser:
    """Make the parser of `decode sample`."""
    parser = OneLineParser(prog=program, description=_OF_SAMPLES)
    parser.add_argument("action", choices=ACTIONS, help="what is done")
    parser.add_argument("video", type=Path, help="the video, of which the first clip is decoded")
    parser.add_argument("--preset", required=True, help="of a pretraining run, or RUN@STEP")
    parser.add_argument("--decoder", required=True, help="preset of a decoder of these features")
    parser.add_argument(
        "--output", type=Path, required=True, help="the .mp4, .gif, .png or .jpg to write"
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=4,
        help="number of seeds, a row each; 0 shows what is hidden [4]",
    )
    parser.add_argument("--seed", type=int, default=0, help="the first seed, and the place's [0]")
    parser.add_argument("--steps", type=int, default=50, help="timesteps gone through [50]")
    parser.add_argument(
        "--kind", choices=KINDS, default="predicted",
        help="features that are decoded: the predictor's, the target encoder's own, or none "
        "[predicted]",
    )  # fmt: skip
    decode_evaluate.add_guidance(parser)
    parser.add_argument(
        "--place", type=int, nargs=2, metavar=("ROW", "COLUMN"),
        help="patch at which the region begins, from 0 [drawn by the block sampler]",
    )  # fmt: skip
    parser.add_argument("--start", type=int, default=0, help="first frame of the video [0]")
    parser.add_argument(
        "--frame-step", type=int, help="frames of the video per frame of a clip [the preset's]"
    )
    return parser


def check(options: Namespace) -> None:
    """Check the options that can be checked without a model.

    Raises:
        OSError: for files that do not exist.
        ValueError: for values out of range.
    """
    check_whole(0, _MOST_SEEDS, seeds=options.seeds)
    check_whole(0, MOST_SEED - options.seeds, seed=options.seed)
    check_whole(1, MOST_LONG, steps=options.steps)
    check_number(decode_evaluate.GUIDANCE, guidance=options.guidance)
    check_whole(0, start=options.start)
    check_whole(1, optional=True, frame_step=options.frame_step)
    for place in options.place or ():
        check_whole(0, MOST_LONG, place=place)
    options.output = check_picture_path(options.output, "output")
    options.video = options.video.expanduser()
    check_is_other(options.output, options.video)
    check_preset(options.preset)
    check_preset(options.decoder, "decoder")
    check_exists(options.video)
    decode_evaluate.check_guidance(options.guidance, options.decoder)


def draw(options: Namespace) -> None:
    """Decode the hidden region of a clip, and write the picture or video.

    Raises:
        OSError: if something cannot be read or written.
        ValueError: for a decoder of another preset, and a region that is not in the clip.
    """
    model = load_pictured(options.preset, needs_predictor=True)
    features = RegionFeatures(model.pretrainer)
    decoder = load_decoder(options.decoder)
    check_made_for(decoder, features, options.preset)
    encoder = model.pretrainer.encoder
    step = options.frame_step or step_of(options.preset) or model.preprocessor.frame_step
    wanted = step * encoder.num_frames
    video = read_watched(options.video, encoder, step, options.start, wanted)
    grid, (_, rows, columns) = encoder.grid_shape, decoder.network.grid_shape
    row, column = options.place or drawn_place(grid, rows, columns, options.seed)
    region = HiddenRegion(grid, rows, columns, row, column)
    found = region_features(features, video, region, *model.colour)
    given = found["target" if options.kind == "target" else "predicted"]
    seeds = range(options.seed, options.seed + options.seeds)
    shown = decoded_rows(
        decoder, given, video, region, seeds, options.kind, options.steps, progress,
        options.guidance,
    )  # fmt: skip
    title = f"Decoded from {options.kind} features: region at row {row}, column {column}"
    # A clip may have one frame for several of the video's, by which `--start` counts.
    start = options.start / video.step
    write_rows(options.output, shown, video.fps / video.step, title, start)
    say_masks(options.preset)


def drawn_place(grid: tuple[int, int, int], rows: int, columns: int, seed: int) -> tuple[int, int]:
    """Draw where the region begins, by the block sampler."""
    drawn = region_sampler(grid, rows, columns, seed)(step=0, batch_size=1)
    row, column = divmod(int(drawn[TARGET][0, 0]) % (grid[1] * grid[2]), grid[2])
    return row, column


def say_masks(preset: str) -> None:
    """Say with which masks a preset was trained, if that is known and they are no blocks."""
    run = run_of(preset)
    masks = None if run is None else read_run(run).options.get("masks")
    if masks not in (None, "multi_block"):
        print(
            f"The preset was trained with masks {masks}; here one box is hidden over all time.",
            file=sys.stderr,
        )


def progress(steps: Sequence[int]) -> Iterator[int]:
    """Show a line of progress while the steps of a sampler are gone through."""
    total = len(steps)
    for number, step in enumerate(steps, 1):
        yield step
        if sys.stderr.isatty() or number == total:
            bar = ("#" * (30 * number // total)).ljust(30)
            end = "\n" if number == total else "\r"
            print(f"[{bar}] step {number}/{total} ", end=end, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None, program: str = "decode.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["train"]:
        training_recipe.main(words[1:], f"{program} train")
        return 0
    measuring = {"evaluate": decode_evaluate.main, "table": decode_table.main}
    if words[:1] and words[0] in measuring:
        return measuring[words[0]](words[1:], f"{program} {words[0]}")
    if words[:1] != ["sample"]:
        parser_of_actions(program).parse_all(words[:1])
    parser = parser_of_samples(program)
    options = parser.parse_all(words)
    with parser.refusing():
        check(options)
        draw(options)
    print(f"Wrote {printable(options.output)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
