"""Draw how a model sees a video: features, attention, surprise, masks (App. D).

    keras-vjepa picture pca clip.mp4 --preset PRESET --output pca.mp4
    keras-vjepa picture attention clip.mp4 --preset PRESET --output heads.png --heads 0 1 2
    keras-vjepa picture similarity clip.mp4 --preset PRESET --output alike.gif --patch 0 7 7
    keras-vjepa picture surprise clip.mp4 --preset workdir/run@last --output error.png
    keras-vjepa picture neighbors clip.mp4 --preset PRESET --output nearest.png --folder videos/
    keras-vjepa picture masks clip.mp4 --preset workdir/run@last --output masks.png

The ending of the output determines the format: .mp4 (needs PyAV) and .gif show all frames at the
rate of the video, with the input at the left; .png and .jpg show eight frames with their times. If
a preset has a probe, attention is that of the probe's query unless `--layer` or `--patch` is given.
Surprise is where the video changes into what its past does not tell a pretrained model's predictor;
with `--known past` or `--known around`, it is the predictor's error, whose mean is printed too.
"""

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import numpy as np

from keras_vjepa.arguments import MOST_SEED, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.batches.mask_sampler import MaskSampler
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.sources.folders import search_folder
from keras_vjepa.monitoring.run_tables import read_run
from keras_vjepa.pictures import (
    FrameRow,
    WatchedVideo,
    check_picture_path,
    nearest_videos,
    patch_colours,
    patch_features,
    patch_similarity,
    prediction_changes,
    prediction_errors,
    read_watched,
    surprise,
    token_states,
    write_rows,
)
from keras_vjepa.pictures.attention import encoder_attention, probe_attention
from keras_vjepa.pictures.drawing import heat, mark, stretched
from keras_vjepa.pictures.features import grid_of
from keras_vjepa.pictures.loading import Pictured, load_pictured
from keras_vjepa.pictures.masks import hidden_share, hide
from keras_vjepa.pictures.neighbors import neighbor_sheet
from keras_vjepa.pictures.videos import check_exists, check_is_other, whole_frame_size
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes.pretrain_objects import make_masks
from keras_vjepa.tasks.checkpoint_presets import run_and_step
from keras_vjepa.tools.neighbors import config_of
from keras_vjepa.tools.show_masks import MASKS
from keras_vjepa.training.continuing import OPTIONS_FILE

Rows = tuple[list[FrameRow], str]
# The most columns of a sheet; nobody would look at more.
MOST_NEIGHBORS = 16


def draw_pca(options: Namespace, model: Pictured, video: WatchedVideo) -> Rows:
    """Draw the features of patches as colours."""
    colours = video.of_frames(patch_colours(patch_features(model.backbone, video, *model.colour)))
    return [
        FrameRow("input", video.frames),
        FrameRow("features", stretched(colours, *video.frames.shape[1:3])),
    ], "Patch features: their three main directions as red, green and blue"


def draw_similarity(options: Namespace, model: Pictured, video: WatchedVideo) -> Rows:
    """Draw how similar the features of a patch and those of all others are."""
    features = patch_features(model.backbone, video, *model.colour)
    cosines = patch_similarity(features, options.patch)
    time, *place = options.patch
    frames = video.frames.copy()
    mark(frames, video.frames_of_token(0, time), features.shape[2:4], place)
    drawn = heat(video.frames, video.of_frames(cosines), high=1.0)
    words = f"Cosine to the features of the patch {' '.join(map(str, options.patch))}"
    return [
        FrameRow("input", frames),
        FrameRow("cosine", drawn),
    ], f"{words}: dark {cosines.min():.2f}, yellow 1"


def draw_attention(options: Namespace, model: Pictured, video: WatchedVideo) -> Rows:
    """Draw where the probe's query or patches in a block of the encoder attend to."""
    of_encoder = options.layer is not None or options.patch is not None
    classifier = None if of_encoder else model.classifier
    if classifier is not None:
        weights = probe_attention(classifier, video, options.heads, *model.colour)
        words = "Attention of the probe's query"
    else:
        layer = -1 if options.layer is None else options.layer
        weights = encoder_attention(
            model.backbone, video, layer, options.heads, options.patch, *model.colour
        )
        of = "all patches" if options.patch is None else f"patch {options.patch}"
        words = f"Attention of {of} in block {layer} of the encoder"
    each = f"{1 / weights[0, 0].size:.2g} each if it were even"
    rows = [FrameRow("input", video.frames)]
    for i in range(weights.shape[1]):
        label = "mean of\nall heads" if options.heads is None else f"head {options.heads[i]}"
        rows.append(FrameRow(label, heat(video.frames, video.of_frames(weights[:, i]))))
    return rows, f"{words}: of each row, dark the least, yellow the most; {each}"


def draw_surprise(options: Namespace, model: Pictured, video: WatchedVideo) -> Rows:
    """Draw where the predictor errs or finds a change, and print how much."""
    pretrainer = model.pretrainer_with_targets
    if options.known == "both_sides":
        found = prediction_changes(pretrainer, video, *model.colour, options.seed)
        numbers = [f"change {of_clip.max():.3g}" for of_clip in found]
        words = "Change: what is before fits less well than what follows"
    else:
        found = prediction_errors(pretrainer, video, options.known, *model.colour)
        numbers = [f"surprise {value:.3g}" for value in surprise(found)]
        side = "was before" if options.known == "past" else "is around"
        words = f"Error of predictions from what {side}"
    for clip, (number, of_clip) in enumerate(zip(numbers, found, strict=True)):
        time, row, column = np.unravel_index(of_clip.argmax(), of_clip.shape)
        shown = video.frames_of_token(clip, int(time))
        # A video shorter than a clip is filled up, with steps that none of its frames show.
        second = (options.start + (shown[0] if len(shown) else len(video.frames) - 1)) / video.fps
        print(
            f"clip {clip}: {number}; most, {of_clip.max():.3g}, at {second:.2f} s in "
            f"row {row} and column {column} of {of_clip.shape[1]} x {of_clip.shape[2]}"
        )
    # Steps that fit what was before are not less than unchanged: nothing below 0 is drawn.
    low = max(0.0, float(found.min()))
    drawn = heat(video.frames, video.of_frames(found), low=low)
    label = "change" if options.known == "both_sides" else "error"
    return [
        FrameRow("input", video.frames),
        FrameRow(label, drawn),
    ], f"{words}: dark {low:.2g}, yellow {found.max():.2g}"


def draw_masks(options: Namespace, model: Pictured, video: WatchedVideo) -> Rows:
    """Draw which parts of the frames masks hide."""
    sampler, labels = masks_of(options, model)
    rows = [FrameRow("input", video.frames)]
    for label, states in zip(labels, token_states(sampler, len(video.starts)), strict=True):
        drawn = hide(video.frames, video.of_frames(states))
        rows.append(FrameRow(f"{label}\n{100 * hidden_share(states):.0f} % hidden", drawn))
    return rows, "What the encoder sees. Blue: targets; grey: neither"


def masks_of(options: Namespace, model: Pictured) -> tuple[MaskSampler, Sequence[str]]:
    """Make the masks that are named, or else those of the run's config, and name them."""
    run = run_of(options.preset)
    grid = model.backbone.grid_shape
    if options.mask is None and run is not None:
        sampler = make_masks(config_of(read_run(run).options), grid)
        return sampler, [f"mask {i}" for i in range(len(sampler.masks))]
    names = options.mask or ["short", "long"]
    masks = [MASKS[name] for name in names]
    return MaskSampler(masks, grid, truncation="batch_min", seed=options.seed), names


def draw_neighbors(options: Namespace, model: Pictured) -> None:
    """Write a sheet of the most similar videos, and print their cosines."""
    others = [path for path in search_folder(options.folder, "video").paths]
    found = nearest_videos(model.backbone, model.preprocessor, options.video, others, options.count)
    neighbor_sheet(options.output, options.video, found)
    for path, cosine in found:
        print(f"{cosine:.4f} {printable(path)}")


Draw = Callable[[Namespace, Pictured, WatchedVideo], Rows]
DRAWN: dict[str, Draw | None] = {
    "pca": draw_pca,
    "attention": draw_attention,
    "similarity": draw_similarity,
    "surprise": draw_surprise,
    "masks": draw_masks,
    "neighbors": None,
}
# Options that only some kinds of pictures have.
OWN = {
    "layer": ("attention",),
    "heads": ("attention",),
    "patch": ("attention", "similarity"),
    "known": ("surprise",),
    "mask": ("masks",),
    "seed": ("masks", "surprise"),
    "folder": ("neighbors",),
    "count": ("neighbors",),
}


def parse(arguments: list[str] | None, program: str) -> tuple[Namespace, OneLineParser]:
    """Read the command line; wrong input ends the process with a line that names the option."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("kind", choices=DRAWN, help="what is drawn")
    parser.add_argument("video", type=Path, help="the video")
    parser.add_argument("--preset", required=True, help="of the model, or RUN@STEP")
    parser.add_argument(
        "--output", type=Path, required=True, help="the .mp4, .gif, .png or .jpg to write"
    )
    parser.add_argument("--start", type=int, default=0, help="first frame of the video")
    parser.add_argument("--num-frames", type=int, help="frames of the video [all]")
    parser.add_argument(
        "--frame-step", type=int, help="frames of the video per frame of a clip [the preset's]"
    )
    parser.add_argument(
        "--layer", type=int, help="block of the encoder, -1 is the last [the probe, else -1]"
    )
    parser.add_argument(
        "--heads", type=int, nargs="+", help="numbers of heads, each drawn by itself [mean of all]"
    )
    parser.add_argument(
        "--patch", type=int, nargs=3, metavar=("TIME", "ROW", "COLUMN"),
        help="which patch attends, or is compared with all; from 0 [mean of all, or the middle]",
    )  # fmt: skip
    parser.add_argument(
        "--known", choices=("both_sides", "past", "around"),
        help="predict half steps from those before and after, to find changes; or time steps from "
        "those before, or blocks from what is around, to find errors [both_sides]",
    )  # fmt: skip
    parser.add_argument(
        "--mask", nargs="+", choices=MASKS, help="kinds of masks [the run's, else short and long]"
    )
    parser.add_argument("--seed", type=int, help="of what is hidden at random [0]")
    parser.add_argument("--folder", type=Path, help="where neighbours are searched [the video's]")
    parser.add_argument("--count", type=int, help="neighbours [7]")
    options = parser.parse_all(arguments)
    for name, kinds in OWN.items():
        if getattr(options, name) is not None and options.kind not in kinds:
            parser.error(
                f"--{name} is an option of {' and '.join(kinds)} alone. Received: {options.kind}"
            )
    with parser.refusing():
        check(options)
    return options, parser


def check(options: Namespace) -> None:
    """Check the options that can be checked without a model, and fill in those left out.

    Raises:
        OSError: for files that do not exist.
        ValueError: for values out of range.
    """
    options.output = check_picture_path(options.output, "output", options.kind != "neighbors")
    options.video = options.video.expanduser()
    options.known = options.known or "both_sides"
    options.seed = 0 if options.seed is None else options.seed
    options.count = 7 if options.count is None else options.count
    check_whole(0, MOST_SEED, seed=options.seed)
    check_whole(0, start=options.start)
    check_whole(1, optional=True, num_frames=options.num_frames, frame_step=options.frame_step)
    check_whole(1, MOST_NEIGHBORS, count=options.count)
    check_is_other(options.output, options.video)
    if options.kind == "neighbors":
        options.folder = (options.folder or options.video.parent).expanduser()
        if not options.folder.is_dir():
            raise FileNotFoundError(f"`folder` must be a folder. Received: {options.folder}")
    check_preset(options.preset)
    check_exists(options.video)


def draw(options: Namespace) -> None:
    """Draw one picture.

    Raises:
        OSError: if something cannot be read or written.
        ValueError: for a part that the model or the video does not have.
    """
    model = load_pictured(options.preset, needs_predictor=options.kind == "surprise")
    function = DRAWN[options.kind]
    if function is None:
        draw_neighbors(options, model)
        return
    step = options.frame_step or step_of(options.preset) or model.preprocessor.frame_step
    video = read_watched(options.video, model.backbone, step, options.start, options.num_frames)
    if options.kind == "similarity" and options.patch is None:
        options.patch = middle_patch(model, video)
    rows, title = function(options, model, video)
    write_rows(options.output, rows, video.fps, title, options.start)


def run_of(preset: str) -> Path | None:
    """Find the run that a preset belongs to, by its name or by the files around its folder."""
    folder, _ = run_and_step(preset)
    around = (folder, folder.parent)
    return next((one for one in around if (one / OPTIONS_FILE).is_file()), None)


def option_of_run(preset: str, name: str) -> Any:
    """Look up an option of the run that a preset belongs to; None if no run or option is found."""
    run = run_of(preset)
    return None if run is None else read_run(run).options.get(name)


def step_of(preset: str) -> int | None:
    """Look up the step between frames with which a preset's run was trained."""
    step = option_of_run(preset, "temporal_stride")
    return step if isinstance(step, int) else None


def middle_patch(model: Pictured, video: WatchedVideo) -> list[int]:
    """Choose the patch in the middle of the first time step."""
    size = whole_frame_size(model.backbone, *video.frames.shape[1:3])
    _, rows, columns = grid_of(model.backbone, size)
    return [0, rows // 2, columns // 2]


def main(arguments: list[str] | None = None, program: str = "picture.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    options, parser = parse(arguments, program)
    with parser.refusing():
        draw(options)
    print(f"Wrote {printable(options.output)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
