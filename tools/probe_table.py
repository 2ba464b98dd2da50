"""Evaluate several frozen encoders alike, or one in many ways, in one table (Tables 5, 6, 8, 16).

    keras-vjepa probe-table --presets PRESET PRESET ...
    keras-vjepa probe-table --presets PRESET PRESET ... --protocols attentive average 5-percent
    keras-vjepa probe-table --preset PRESET

With `--presets`, a row is an encoder, under each of the `--protocols`; with `--preset`, it is
another way to evaluate one, as in `recipes/probe_table.py`. Options are those of `probe`.

Each encoder gets clips of its own size and number of frames, which span the same time in all rows,
and pixels as its preset's preprocessor makes them. An encoder of images sees as many frames as the
config has, one by one. A table that was stopped continues with the first result that is missing.
"""

import itertools
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from keras_vjepa import command_line, files
from keras_vjepa.arguments import check_choice
from keras_vjepa.configuration import replace
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.report import mean_and_deviation
from keras_vjepa.evaluation_pixels import seen_as_by_the_preset
from keras_vjepa.locks import locked
from keras_vjepa.models.adapters import as_token_encoder
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.monitoring.run_tables import read_run
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.recipes import probe, probe_table
from keras_vjepa.recipes.probe_configs import ProbeConfig
from keras_vjepa.recipes.probe_table import CONFIGS
from keras_vjepa.tasks.checkpoint_presets import run_and_step
from keras_vjepa.training.results import read_result
from keras_vjepa.training.resumable import writable_folder

# In millions, as the paper states them (Tables 5 and 16), by the beginning of a preset's name.
_SAMPLES_SEEN = {
    "vjepa_large_patch16_224": 270,
    "vjepa_huge_patch16_224": 270,
    "vjepa_huge_patch16_384": 210,
    "videomae_large_patch16_224_kinetics400": 410,
    "videomaev2_giant_patch14_224_hybrid": 1_600,
    "omnimae_large_patch16_224": 2_400,
    "hiera_large_16x224_mae": 770,
    "dinov2_giant_patch14": 1_900,
    "openclip_bigG_patch14_224_laion2b": 39_000,
}
# What a protocol changes of the config.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "attentive": {"pooling": "attentive", "num_layers": 1},
    "average": {"pooling": "average"},
    "two-layers": {"pooling": "attentive", "num_layers": 2},
    "1-clip": {"num_clips": 1},
    "2-clips": {"num_clips": 2},
    "50-percent": {"fraction": 0.5},
    "10-percent": {"fraction": 0.1},
    "5-percent": {"fraction": 0.05},
}
_COLUMNS = ("protocol", "parameters", "input", "clips x views", "samples seen")


def run(
    presets: Sequence[str], config: ProbeConfig, workdir: Path, protocols: Sequence[str] = ("",)
) -> str:
    """Evaluate every encoder, save and return the table; continue one that was stopped.

    Args:
        presets: names of presets, or "untrained".
        config: how to evaluate; its preset is not used.
        workdir: folder for all results: `table.md`, `table.json`, features and metrics.
        protocols: names of `PROTOCOLS`, each of which makes a row of every encoder; "" for the
            config as it is.
    """
    with locked(writable_folder(workdir), "--workdir"):
        return _table(presets, config, workdir, protocols)


def _table(
    presets: Sequence[str], config: ProbeConfig, workdir: Path, protocols: Sequence[str]
) -> str:
    """Do as `run`, while no other run uses the folder."""
    keras.config.set_dtype_policy(config.dtype)
    lines = [f"| {' | '.join(('frozen probe, top-1 in %', *_COLUMNS, *config.tasks))} | s |"]
    lines.append("|---" * (2 + len(_COLUMNS) + len(config.tasks)) + "|")
    rows = []
    for preset, protocol in itertools.product(presets, protocols):
        changed = replace(config, preset=preset, **PROTOCOLS.get(protocol, {}))
        rows.append({**_row(changed, workdir), "protocol": protocol})
        lines.append(f"| {' | '.join(_cells(rows[-1], config.tasks))} |")
        print(lines[-1], file=sys.stderr, flush=True)
        # What the encoder before held is not needed any longer.
        keras.backend.clear_session()
    table = "\n".join(lines) + "\n"
    files.write_text(workdir / "table.json", json.dumps(rows, indent=1))
    files.write_text(workdir / "table.md", table)
    return table


def _row(config: ProbeConfig, workdir: Path) -> dict[str, Any]:
    """Evaluate one encoder."""
    start = time.perf_counter()
    encoder = probe.make_encoder(config)
    config = probe.completed(fitted(config, encoder))
    if config.preset != probe.UNTRAINED:
        config = seen_as_by_the_preset(config, config.preset)
    train, test = probe.samples_of(config)
    config = config.for_samples([*train, *test])
    one = FrozenProbe(encoder, config, probe.cache_of(config, workdir))
    evaluator = Evaluator(one, train, test, workdir / "rows")
    kept = writable_folder(workdir / "seconds") / f"{evaluator.key}.json"
    was_finished = evaluator.is_finished(config.splits)
    results = evaluator(config.splits)
    if not was_finished or not kept.exists():
        files.write_text(kept, json.dumps({"seconds": time.perf_counter() - start}))
    clip, size = one.settings.clip, one.settings.image_size
    assert size is not None
    return {
        "preset": config.preset,
        "parameters": encoder.count_params(),
        "input": [clip.frames_per_clip, *height_and_width(size)],
        "clips": config.classifier.num_clips,
        "views": config.classifier.num_views,
        "samples_seen": samples_seen(config.preset),
        "top1": {task: [result[task]["top1"] for result in results] for task in config.tasks},
        "seconds": (read_result(kept) or {}).get("seconds"),
    }


def fitted(config: ProbeConfig, encoder: Any) -> ProbeConfig:
    """Set a config to clips that an encoder takes and that span the same time.

    Args:
        config: config of all rows.
        encoder: any backbone.
    """
    own = as_token_encoder(encoder)
    clip = config.clip
    frames, stride = clip.frames_per_clip or own.num_frames or 16, clip.frame_step
    taken = frames if own.is_image_model else own.num_frames or frames
    changes = {"num_frames": taken, "temporal_stride": max(1, frames * stride // taken)}
    return replace(config, image_size=own.image_size or config.image_size, **changes)


def samples_seen(preset: str) -> int | None:
    """Count the clips or images that an encoder was pretrained on, with repetitions.

    Args:
        preset: name of a preset; of a run, its folder `RUN/preset` or `RUN@STEP`.

    Returns:
        Steps times batch of a run, the paper's number for a released model that it has one for,
        and otherwise None, because weights do not tell.
    """
    if preset in _SAMPLES_SEEN:
        return _SAMPLES_SEEN[preset] * 1_000_000
    folder, step = run_and_step(preset)
    if folder.name == "preset" and step is None:
        folder = folder.parent
    try:
        found = read_run(folder, step)
    except (OSError, ValueError):  # it is the preset of no run
        return None
    batch_size = found.options.get("batch_size")
    return found.done * batch_size if found.done and isinstance(batch_size, int) else None


def _cells(row: dict[str, Any], tasks: Sequence[str]) -> list[str]:
    frames, height, width = row["input"]
    seen, seconds = row["samples_seen"], row["seconds"]
    return [
        row["preset"],
        row["protocol"],
        f"{row['parameters']:,}",
        f"{frames} x {height} x {width}",
        f"{row['clips']} x {row['views']}",
        "" if seen is None else f"{seen:,}",
        *(mean_and_deviation(row["top1"][task]) for task in tasks),
        "" if seconds is None else f"{seconds:.0f}",
    ]


def check(
    presets: Sequence[str], config: ProbeConfig, workdir: Path, protocols: Sequence[str] = ("",)
) -> None:
    """Check everything that can be checked before anything is made or written.

    Raises:
        ValueError: for a preset that does not exist, for a protocol that does not, and for one that
            is named twice.
        OSError: if data or a folder do not exist or cannot be made.
    """
    for number, protocol in enumerate(protocols):
        check_choice(("", *PROTOCOLS), protocols=protocol)
        if protocol in protocols[:number]:
            raise ValueError(f"`protocols` must differ. Received: {protocol} twice")
    for number, preset in enumerate(presets):
        if preset in presets[:number]:
            raise ValueError(f"`presets` must differ. Received: {preset} twice")
        if preset != probe.UNTRAINED:
            check_preset(preset, "presets")
    probe.check(replace(config, preset=probe.UNTRAINED), workdir)


def parse_arguments(
    arguments: list[str] | None = None, program: str = "probe_table.py"
) -> tuple[list[str], list[str], ProbeConfig, Path]:
    """Read from a command line the presets, which may be none, protocols, config, workdir."""
    lists = {
        "presets": "encoders to evaluate alike, in their own sizes [none: one, in many ways]",
        "protocols": f"with --presets, a row for each: {', '.join(PROTOCOLS)} [the options' own]",
    }
    name, changes, workdir = command_line.parse(
        program, __doc__ or "", CONFIGS, arguments, "probe_table_", lists
    )
    presets, protocols = changes.pop("presets", []), changes.pop("protocols", [""])
    if not presets and protocols != [""]:
        raise ValueError(f"`protocols` must be left out without --presets. Received: {protocols}")
    for option in ("preset", "image_size") if presets else ():
        if option in changes:
            raise ValueError(f"`{option}` must be left out with --presets. Received: one")
    config = replace(CONFIGS[name](), **{"splits": 3, "readouts": False, **changes})
    return presets, protocols, config, workdir


def main(arguments: list[str] | None = None, program: str = "probe_table.py") -> None:
    """Run the command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with command_line.refusing(program, CONFIGS, arguments):
        presets, protocols, config, workdir = parse_arguments(arguments, program)
        if presets:
            check(presets, config, workdir, protocols)
    if not presets:
        return probe_table.main(arguments, program)
    try:
        print(run(presets, config, workdir, protocols), end="")
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        sys.exit(f"{program}: {command_line.explain(error, CONFIGS)}")


if __name__ == "__main__":
    main()
