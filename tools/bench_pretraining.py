"""Time pretraining steps of V-JEPA and of masked autoencoders (Tables 5, 7 and 16, Fig. 5).

    KERAS_BACKEND=torch keras-vjepa bench-pretraining OUTPUT --size large --batch-size 1

Steps of V-JEPA and of VideoMAE are timed in plain PyTorch, on this machine (on a CPU, in seconds of
the processor, all cores together). Both have an encoder of the same size. VideoMAE has the decoder
of the published width and depth, which gets the visible tokens and a mask token for every other
one, and predicts normalised pixels. VideoMAEv2's giant is not run: its time is computed from its
FLOPs and the speed that VideoMAE reached.

The folder OUTPUT gets a table, in which the times are multiplied by the number of clips that the
paper says each model has seen; Fig. 5 with these hours and the paper's accuracies; and `costs.json`
for `keras-vjepa probe-table --costs`, which draws the figure with measured accuracies.
"""

import json
from pathlib import Path
from typing import Any

# This comes before Keras is imported, because it chooses Keras' backend.
import keras_vjepa  # noqa: F401

# isort: split
import numpy as np

from keras_vjepa import files
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.evaluation.pretraining_cost import (
    SAMPLES_SEEN,
    VIDEOMAE,
    VIDEOMAEV2_GIANT,
    Transformer,
    hours_of_samples,
    vjepa_flops,
)
from keras_vjepa.models.backbone import SIZES
from keras_vjepa.monitoring.curves import draw_points
from keras_vjepa.tools.bench import CONTEXT_TOKENS, TARGET_TOKENS, TOKENS
from keras_vjepa.tools.bench_finetune import in_turns, timing_options
from keras_vjepa.training.resumable import writable_folder

_PATCH_VALUES = 2 * 16 * 16 * 3
V2 = "videomaev2_giant_patch14_224_hybrid"
# The paper's accuracies on Something-Something v2: fine-tuned (Table 5) over millions of clips, and
# frozen (Tables 5 and 6).
_FINE_TUNED = {
    "V-JEPA ViT-L/16": (270, 75.1),
    "VideoMAE ViT-L/16": (410, 74.3),
    "Hiera-L": (770, 75.1),
    "OmniMAE ViT-L/16": (2_400, 74.2),
}
_FROZEN = {
    "vjepa_large_patch16_224": 69.5,
    "vjepa_huge_patch16_224": 71.4,
    "videomae_large_patch16_224_kinetics400": 65.5,
    "videomae_huge_patch16_224_kinetics400": 66.2,
    V2: 61.2,
}
Row = dict[str, Any]


def preset_names(size: str) -> tuple[str, str]:
    """Name the presets of V-JEPA and VideoMAE of a size; the paper has some of them alone."""
    return f"vjepa_{size}_patch16_224", f"videomae_{size}_patch16_224_kinetics400"


def flops_of(size: str) -> tuple[float, float]:
    """Count the FLOPs of a clip's training step, of V-JEPA and of VideoMAE."""
    one = SIZES[size]
    encoder = Transformer(one.hidden_dim, one.num_layers, 4 * one.hidden_dim)
    masks = [*zip(CONTEXT_TOKENS, TARGET_TOKENS, strict=True)]
    of_vjepa = vjepa_flops(encoder, Transformer(384, 12, 1536), _PATCH_VALUES, TOKENS, masks)
    return of_vjepa, VIDEOMAE[size].flops


def measured(size: str, batch_size: int, steps: int, dtype: str) -> list[Row]:
    """Time both steps, and compute VideoMAEv2's.

    Returns:
        A row each for V-JEPA, VideoMAE and VideoMAEv2, with the seconds and FLOPs of a clip.
    """
    from keras_vjepa.tools import plain_torch_masked, plain_torch_step

    makers = plain_torch_masked.vjepa_step, plain_torch_masked.videomae_step
    # A processor's own time is hardly changed by other work on the machine.
    kind = 0 if plain_torch_step.device() == "cuda" else 1
    rows: list[Row] = []
    for name, flops, make in zip(preset_names(size), flops_of(size), makers, strict=True):
        # One after the other, because of the memory that both together would need.
        [times] = in_turns([make(size, batch_size, dtype == "mixed_bfloat16")], steps, warm_up=1)
        passed, of_processor = np.median(times, axis=0)
        seconds = float(np.median(times, axis=0)[kind]) / batch_size
        rows.append({"preset": name, "flops": flops, "seconds": seconds})
        print(f"{name}: step {passed:.2f} s, {of_processor:.2f} s of the processor", flush=True)
    speed = rows[1]["flops"] / rows[1]["seconds"]
    of_v2 = VIDEOMAEV2_GIANT.flops
    rows.append({"preset": V2, "flops": of_v2, "seconds": of_v2 / speed, "is_computed": True})
    return rows


def table_of(rows: list[Row]) -> str:
    """Write rows as a table, with the hours of all the clips that a model has seen."""
    lines = [
        "| pretraining of | TFLOP a clip | s a clip | million clips seen | hours here |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        seen, hours = (
            SAMPLES_SEEN.get(row["preset"]),
            hours_of_samples(row["preset"], row["seconds"]),
        )
        computed = " (computed)" if row.get("is_computed") else ""
        cells = (
            row["preset"],
            f"{row['flops'] / 1e12:.2f}",
            f"{row['seconds']:.3f}{computed}",
            "" if seen is None else f"{seen:,}",
            "" if hours is None else f"{hours:,.0f}{computed}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], folder: Path) -> None:
    """Draw Fig. 5 with the paper's accuracies: over clips seen, and over hours on this machine."""
    title = "SSv2, fine-tuned, top-1 in % (paper)"
    draw_points(folder / "figure_5a.svg", "million clips seen (paper)", {title: _FINE_TUNED})
    places = {
        row["preset"] + " (computed)" * ("is_computed" in row): (hours, _FROZEN[row["preset"]])
        for row in rows
        if row["preset"] in _FROZEN
        and (hours := hours_of_samples(row["preset"], row["seconds"])) is not None
    }
    if places:
        title, axis = "SSv2, frozen, top-1 in % (paper)", "hours of pretraining on this machine"
        draw_points(folder / "figure_5b.svg", axis, {title: places})


def main(arguments: list[str] | None = None, program: str = "bench_pretraining.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", metavar="OUTPUT", help="folder for table, figures and costs.json")
    parser.add_argument("--size", default="base", choices=[*VIDEOMAE], help="of both encoders")
    options = timing_options(parser, arguments, steps=3)
    with parser.refusing():
        if not options.output.strip():
            raise ValueError("`OUTPUT` must be a folder. Received: nothing")
        folder = writable_folder(Path(options.output).expanduser(), "OUTPUT")
    with parser.failing(ImportError):  # without torch, which is optional
        rows = measured(options.size, options.batch_size, options.steps, options.dtype)
    table = table_of(rows)
    files.write_text(folder / "table.md", table)
    files.write_text(folder / "costs.json", json.dumps(rows, indent=1))
    draw(rows, folder)
    print(table, end="")


if __name__ == "__main__":
    main()
