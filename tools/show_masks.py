"""Draw the masks of one batch as a picture (the paper's Figure 4 and Figure 9).

    keras-vjepa masks --output masks.png --mask short long tube --resolution 224 --seed 0

Each row is a sample, and each group of frames a kind of mask; time runs to the right. White tokens
are the context and blue ones the target. Grey tokens are in neither, because they were cut off when
all samples of the batch were cut to the length of the shortest.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import MOST_SEED, MOST_SIDE, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.batches.mask_kinds import (
    LONG_RANGE,
    SHORT_RANGE,
    CausalMultiBlockMask,
    Grid,
    Mask,
    RandomTokenMask,
    RandomTubeMask,
)
from keras_vjepa.data.batches.mask_sampler import MaskSampler

MASKS: dict[str, Mask] = {
    "short": SHORT_RANGE,
    "long": LONG_RANGE,
    "tube": RandomTubeMask(ratio=0.9),
    "random": RandomTokenMask(ratio=0.9),
    "causal": CausalMultiBlockMask(num_blocks=8, spatial_scale=0.15, num_context_frames=6),
}
# The most rows of a picture; nobody would look at more.
MOST_SAMPLES = 256
NUM_FRAMES, TUBELET_SIZE, PATCH_SIZE = 16, 2, 16

# Colours in OpenCV's order: blue, green, red.
BACKGROUND, NEITHER, CONTEXT, TARGET = (60, 60, 60), (150, 150, 150), (255, 255, 255), (200, 90, 30)
TOKEN_PIXELS, FRAME_GAP, KIND_GAP = 4, 4, 24


def draw_sample(
    context: NDArray[np.int32], target: NDArray[np.int32], grid: Grid
) -> NDArray[np.uint8]:
    """Draw one sample's frames side by side, from its context and target indices.

    Returns:
        A picture (height, width, 3), with a gap to the right of each frame and below it.
    """
    num_steps, num_rows, num_columns = grid
    tokens = np.full((num_steps * num_rows * num_columns, 3), NEITHER, np.uint8)
    tokens[context] = CONTEXT
    tokens[target] = TARGET
    frames = tokens.reshape(*grid, 3).repeat(TOKEN_PIXELS, 1).repeat(TOKEN_PIXELS, 2)
    height, width = frames.shape[1:3]
    framed = np.full((num_steps, height + FRAME_GAP, width + FRAME_GAP, 3), BACKGROUND, np.uint8)
    framed[:, :height, :width] = frames
    return np.hstack(list(framed))


def draw_batch(sampler: MaskSampler, batch_size: int) -> NDArray[np.uint8]:
    """Draw the batch of step 0: samples from top to bottom, mask kinds from left to right."""
    batch = sampler(step=0, batch_size=batch_size)
    columns = []
    for kind in range(len(sampler.masks)):
        lists = zip(batch[f"context_indices_{kind}"], batch[f"target_indices_{kind}"], strict=True)
        samples = [draw_sample(context, target, sampler.grid) for context, target in lists]
        column = np.vstack(samples)
        gap = np.full((column.shape[0], KIND_GAP, 3), BACKGROUND, np.uint8)
        columns += [column, gap]
    return np.hstack(columns[:-1])


def main(arguments: list[str] | None = None, program: str = "show_masks.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="the picture to write, .png")
    parser.add_argument(
        "--mask",
        nargs="+",
        choices=MASKS,
        default=["short", "long"],
        help="kinds of masks, from left to right",
    )
    parser.add_argument("--resolution", type=int, default=224, help="pixels, a multiple of 16")
    parser.add_argument("--batch-size", type=int, default=8, help="samples")
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(PATCH_SIZE, MOST_SIDE, resolution=options.resolution)
        check_whole(1, MOST_SAMPLES, batch_size=options.batch_size)
        check_whole(0, MOST_SEED, seed=options.seed)
    if options.resolution % PATCH_SIZE:
        parser.error(
            f"--resolution must be a multiple of {PATCH_SIZE}. Received: {options.resolution}"
        )
    if options.output.suffix != ".png" or not options.output.parent.is_dir():
        parser.error(f"--output must be a .png in an existing folder. Received: {options.output}")
    side = options.resolution // PATCH_SIZE
    with parser.refusing():
        masks = [MASKS[name] for name in options.mask]
        grid = (NUM_FRAMES // TUBELET_SIZE, side, side)
        sampler = MaskSampler(masks, grid, truncation="batch_min", seed=options.seed)
        picture = draw_batch(sampler, options.batch_size)
    try:
        files.write_picture(options.output, picture)
    except OSError as error:
        parser.error(f"--output cannot be written: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
