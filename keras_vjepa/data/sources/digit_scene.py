"""Write the built-in set for action detection as files in the layout of AVA v2.2 (App. D.2).

`digit_scene_rendering.py` describes what the videos show. Beside the true boxes there are
"detected" ones, as a detector would find them: moved at the edges, some missing, some where nothing
is.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_vjepa.data.sources.digit_motion_rendering import Split
from keras_vjepa.data.sources.digit_scene_rendering import (
    ACTIONS,
    SCENE_VERSION,
    DigitScene,
    DigitSceneConfig,
    render_scene,
)
from keras_vjepa.data.sources.rendered_sets import (
    Progress,
    in_parallel,
    print_progress,
    rendered_folder,
    video_writer,
)

# Names of sets that recipes take in place of a path.
SCENES = {"digit_scene": DigitSceneConfig()}
# AVA's names of the two splits.
_NAMES: dict[Split, str] = {"train": "train", "test": "val"}
# Detected boxes are made by moving the edges of true ones by at most this share, leaving some out,
# and adding others.
_MOVED, _MISSED, _INVENTED = 0.12, 0.1, 0.15


@dataclass(frozen=True)
class DigitSceneFiles:
    """Says where the files of the rendered set lie.

    Attributes:
        folder: in the layout of AVA: `annotations`, `videos`.
        train: list of the training videos, for pretraining.
        detected: csv of the detected boxes of both splits.
    """

    folder: Path
    train: Path
    detected: Path


def prepare_digit_scenes(
    cache_dir: str | Path | None = None,
    config: DigitSceneConfig | None = None,
    progress: Progress | None = print_progress,
) -> DigitSceneFiles:
    """Render the set into a cache folder, unless it is there already.

    Args:
        cache_dir, progress: as in `prepare_digit_motion`.
        config: what to render; `None` is the standard set of 1,200 and 300 videos.

    Raises:
        OSError: if the cache folder cannot be written.
    """
    config = config or DigitSceneConfig()
    folder = rendered_folder(
        "digit_scene",
        SCENE_VERSION,
        config,
        cache_dir,
        lambda unfinished, use_h264: _write(unfinished, config, use_h264, progress),
    )
    return DigitSceneFiles(folder, folder / "train.csv", folder / "detected.csv")


def _write(
    unfinished: Path,
    config: DigitSceneConfig,
    use_h264: bool,
    progress: Progress | None,
) -> None:
    write, extension = video_writer(use_h264)
    for name in ("annotations", "videos"):
        (unfinished / name).mkdir()

    def render(job: tuple[Split, int]) -> tuple[Split, str, DigitScene]:
        split, index = job
        scene, name = render_scene(split, index, config), f"{split}_{index:05d}"
        write(
            unfinished / "videos" / f"{name}{extension}",
            scene.frames,
            config.fps // config.frame_step,
        )
        return split, name, scene

    rows: dict[Split, list[str]] = {split: [] for split in _NAMES}
    listed, detected = [], []
    scenes = in_parallel(config, render, progress)
    for done, (split, name, scene) in enumerate(scenes, start=1):
        rows[split] += _truth(name, scene, config)
        detected += _detected(name, scene, config, (config.seed, 8, done))
        if split == "train":
            listed.append(f"videos/{name}{extension}\n")
    for split, lines in rows.items():
        (unfinished / "annotations" / f"ava_{_NAMES[split]}_v2.2.csv").write_text("".join(lines))
    items = "".join(f'item {{\n  name: "{name}"\n  id: {n}\n}}\n' for n, name in ACTIONS.items())
    (unfinished / "annotations" / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(
        items
    )
    (unfinished / "train.csv").write_text("".join(listed))
    (unfinished / "detected.csv").write_text("".join(detected))


def _shares(box: tuple[float, ...], config: DigitSceneConfig) -> str:
    return ",".join(f"{edge / config.canvas_size:.4f}" for edge in box)


def _truth(name: str, scene: DigitScene, config: DigitSceneConfig) -> list[str]:
    return [
        f"{name},{second:04d},{_shares(digit.box(second * config.fps), config)},{action},{person}\n"
        for second in config.key_seconds
        for person, digit in enumerate(scene.digits)
        for action in digit.actions
    ]


def _detected(
    name: str, scene: DigitScene, config: DigitSceneConfig, seed: tuple[int, ...]
) -> list[str]:
    """Make the boxes that a detector could have found in a scene."""
    rng, rows = np.random.default_rng(seed), []

    def add(box: np.ndarray, low: float, high: float) -> None:
        box = box.clip(0, config.canvas_size)
        if (box[2:] - box[:2] > 2).all():
            score = rng.uniform(low, high)
            rows.append(f"{name},{second:04d},{_shares(tuple(box), config)},,{score:.3f}\n")

    for second in config.key_seconds:
        for digit in scene.digits:
            moved = rng.uniform(-_MOVED, _MOVED, 4) * digit.size
            if rng.random() >= _MISSED:
                add(np.array(digit.box(second * config.fps)) + moved, 0.8, 1.0)
        if rng.random() < _INVENTED * len(scene.digits):
            corner = rng.uniform(0, config.canvas_size - config.largest, 2)
            size = rng.uniform(config.smallest, config.largest, 2)
            add(np.concatenate([corner, corner + size]), 0.6, 0.95)
    return rows
