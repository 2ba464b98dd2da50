"""Evaluate several frozen encoders alike, or one in many ways, in one table (Tables 5, 6, 8, 16).

    keras-vjepa probe-table --presets PRESET PRESET ...
    keras-vjepa probe-table --presets PRESET PRESET ... --protocols attentive average 5-percent
    keras-vjepa probe-table --preset PRESET

With `--presets`, a row is an encoder, under each of the `--protocols`; with `--preset`, it is
another way to evaluate one, as in `recipes/probe_table.py`. Options are those of `probe`.

Each encoder gets clips of its own size and number of frames, which span the same time in all rows,
and pixels as its preset's preprocessor makes them. An encoder of images sees as many frames as the
config has, one by one; if it has no number, as with `--data`, clips span the time of 16. A table
that was stopped continues with the first result that is missing.
"""

import itertools
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_vjepa import command_line, files
from keras_vjepa.arguments import check_choice
from keras_vjepa.configuration import replace
from keras_vjepa.data.batches.indexed import TooManyBadFilesError
from keras_vjepa.evaluation.evaluator import Evaluator
from keras_vjepa.evaluation.frozen_probe import FrozenProbe
from keras_vjepa.evaluation.labelled_videos import check_rows
from keras_vjepa.evaluation.report import mean_and_deviation
from keras_vjepa.evaluation_pixels import seen_as_by_the_preset
from keras_vjepa.locks import locked
from keras_vjepa.models.adapters import as_token_encoder
from keras_vjepa.models.backbone_preset import load_backbone_to_evaluate
from keras_vjepa.models.dimensions import height_and_width
from keras_vjepa.monitoring.pretraining_effort import (
    draw_effort,
    pretraining_hours,
    read_costs,
    samples_seen,
)
from keras_vjepa.presets.preset import CONFIG_FILE, check_claims, check_preset, find_preset
from keras_vjepa.recipes import probe, probe_table
from keras_vjepa.recipes.probe_configs import CONFIGS, ProbeConfig
from keras_vjepa.training.results import read_result
from keras_vjepa.training.resumable import folder_of_results, writable_folder

# What a protocol changes of the config.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "attentive": {"pooling": "attentive", "num_layers": 1},
    "average": {"pooling": "average"},
    "two-layers": {"pooling": "attentive", "num_layers": 2},
    **{f"{n}-clip{'s' * (n > 1)}": {"num_clips": n} for n in (1, 2, 5, 8)},
    "50-percent": {"fraction": 0.5},
    "10-percent": {"fraction": 0.1},
    "5-percent": {"fraction": 0.05},
}
# Frames of a clip where no option says how many (App. D.1).
_FRAMES = 16
_COLUMNS = ("protocol", "parameters", "input", "clips x views", "samples seen", "hours pretrained")


class Asked(NamedTuple):
    """Holds the arguments of `run`."""

    presets: Sequence[str]
    config: ProbeConfig
    workdir: Path
    protocols: Sequence[str]
    costs: Mapping[str, float]


def run(
    presets: Sequence[str],
    config: ProbeConfig,
    workdir: Path,
    protocols: Sequence[str] = ("",),
    costs: Mapping[str, float] | None = None,
) -> str:
    """Evaluate every encoder, save and return the table; continue one that was stopped.

    Args:
        presets: names of presets, or "untrained".
        config: how to evaluate; its preset is not used.
        workdir: folder for all results: `table.md`, `table.json`, features and metrics.
        protocols: names of `PROTOCOLS`, each of which makes a row of every encoder; "" for the
            config as it is.
        costs: seconds of one clip's training step, by the name of a released preset.
    """
    # What cannot be fetched or is no encoder must not be found out after hours of other rows.
    for preset in presets:
        if preset != probe.UNTRAINED:
            check_claims(find_preset(preset), CONFIG_FILE, keras.Model)
    with folder_of_results(workdir), locked(workdir, "--workdir"):
        return _table(presets, config, workdir, protocols, costs or {})


def _table(
    presets: Sequence[str],
    config: ProbeConfig,
    workdir: Path,
    protocols: Sequence[str],
    costs: Mapping[str, float],
) -> str:
    """Do as `run`, while no other run uses the folder."""
    keras.config.set_dtype_policy(config.dtype)
    train, test = probe.samples_of(config)
    counted = config.for_samples([*train, *test])
    check_rows([replace(counted, **PROTOCOLS.get(name, {})) for name in protocols], train)
    lines = [f"| {' | '.join(('frozen probe, top-1 in %', *_COLUMNS, *config.tasks))} | s |"]
    lines.append("|---" * (2 + len(_COLUMNS) + len(config.tasks)) + "|")
    rows = []
    for preset, protocol in itertools.product(presets, protocols):
        changed = replace(config, preset=preset, **PROTOCOLS.get(protocol, {}))
        took = {"samples_seen": samples_seen(preset), "hours": pretraining_hours(preset, costs)}
        rows.append({**_row(changed, workdir), **took, "protocol": protocol})
        lines.append(f"| {' | '.join(_cells(rows[-1], config.tasks))} |")
        print(lines[-1], file=sys.stderr, flush=True)
        # What the encoder before held is not needed any longer.
        keras.backend.clear_session()
    table = "\n".join(lines) + "\n"
    files.write_text(workdir / "table.json", json.dumps(rows, indent=1))
    files.write_text(workdir / "table.md", table)
    draw_effort(rows, config.tasks, workdir)
    return table


def _row(config: ProbeConfig, workdir: Path) -> dict[str, Any]:
    """Evaluate one encoder."""
    start = time.perf_counter()
    if config.preset == probe.UNTRAINED:
        encoder = probe.make_encoder(config)
    else:
        encoder = load_backbone_to_evaluate(config.preset, dtype=config.dtype)
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
        "top1": {task: [result[task]["top1"] for result in results] for task in config.tasks},
        "seconds": (read_result(kept) or {}).get("seconds"),
    }


def fitted(config: ProbeConfig, encoder: Any) -> ProbeConfig:
    """Set a config to clips that an encoder takes and that span the same time.

    A config without a number of frames has the paper's: with each encoder's own, clips would span
    different times, and an encoder of images would see a single frame of a video.

    Args:
        config: config of all rows.
        encoder: any backbone.
    """
    own = as_token_encoder(encoder)
    clip = config.clip
    frames, stride = clip.frames_per_clip or _FRAMES, clip.frame_step
    taken = frames if own.is_image_model else own.num_frames or frames
    if own.is_image_model and config.images:
        taken = 1
    changes = {"num_frames": taken, "temporal_stride": max(1, frames * stride // taken)}
    return replace(config, image_size=own.image_size or config.image_size, **changes)


def _cells(row: dict[str, Any], tasks: Sequence[str]) -> list[str]:
    frames, height, width = row["input"]
    seen, hours, seconds = row["samples_seen"], row["hours"], row["seconds"]
    return [
        row["preset"],
        row["protocol"],
        f"{row['parameters']:,}",
        f"{frames} x {height} x {width}",
        f"{row['clips']} x {row['views']}",
        "" if seen is None else f"{seen:,}",
        "" if hours is None else f"{hours:,.2g}" if hours < 10 else f"{hours:,.0f}",
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


def parse_arguments(arguments: list[str] | None = None, program: str = "probe_table.py") -> "Asked":
    """Read from a command line what `run` takes; there may be no presets."""
    lists = {
        "presets": "encoders to evaluate alike, in their own sizes [none: one, in many ways]",
        "protocols": f"with --presets, a row for each: {', '.join(PROTOCOLS)} [the options' own]",
        "costs": "with --presets, each a costs.json of bench-pretraining [no hours]",
    }
    config, changes, workdir = probe.parse_config(
        arguments, program, __doc__ or "", "probe_table_", lists
    )
    given = {name: changes.pop(name) for name in lists if name in changes}
    presets = given.get("presets", [])
    for option in ("protocols", "costs"):
        if option in given and not presets:
            raise ValueError(
                f"`{option}` must be left out without --presets. Received: {given[option]}"
            )
    for option in ("preset", "image_size") if presets else ():
        if option in changes:
            raise ValueError(f"`{option}` must be left out with --presets. Received: one")
    config = replace(config, **{"splits": 3, "readouts": False, **changes})
    costs = {k: seconds for file in given.get("costs", []) for k, seconds in read_costs(file)}
    return Asked(presets, config, workdir, given.get("protocols", [""]), costs)


def main(arguments: list[str] | None = None, program: str = "probe_table.py") -> None:
    """Run the command, with `program` in front of its messages."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    with command_line.refusing(program, CONFIGS, arguments):
        asked = parse_arguments(arguments, program)
        if asked.presets:
            check(*asked[:4])
    if not asked.presets:
        return probe_table.main(arguments, program)
    try:
        print(run(*asked), end="")
    except (ValueError, OSError, FloatingPointError, TooManyBadFilesError) as error:
        sys.exit(f"{program}: {command_line.explain(error, CONFIGS)}")


if __name__ == "__main__":
    main()
