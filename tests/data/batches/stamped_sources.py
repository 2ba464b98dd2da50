"""Sources of videos that show which video and which frame each picture is of."""

import io
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from keras_vjepa.data import ClipBatches
from keras_vjepa.data.sources.listing import list_samples
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.sources.video_writing import write_motion_jpeg
from tests.data.reading.stamped import stamped_frame, stamps

NUM_VIDEOS, NUM_FRAMES = 24, 4
HEIGHT, WIDTH = 64, 96
BATCH_SIZE = 4


def frames_of(video: int) -> np.ndarray:
    """The frames of a video."""
    numbers = range(NUM_FRAMES * video, NUM_FRAMES * (video + 1))
    return np.stack([stamped_frame(number, HEIGHT, WIDTH) for number in numbers])


def write_sources(root: Path) -> None:
    """Write the same videos as files, as folders of frames, and, their first frames, in shards."""
    (root / "folder").mkdir()
    for video in range(NUM_VIDEOS):
        write_motion_jpeg(root / "folder" / f"{video:02d}.avi", frames_of(video), 30)
        folder = root / "frames" / f"v{video:02d}"
        folder.mkdir(parents=True)
        for number, frame in enumerate(frames_of(video)):
            (folder / f"{number}.png").write_bytes(_png(frame))
    for shard in range(3):
        with tarfile.open(root / f"{shard}.tar", "w") as tar:
            for video in range(shard, NUM_VIDEOS, 3):
                info, content = tarfile.TarInfo(f"{video:02d}.png"), _png(frames_of(video)[0])
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def samples_of(root: Path, kind: str) -> list[Sample]:
    """List what `write_sources` wrote: "folder", "frames" or "shards"; or the same as "rows"."""
    if kind == "rows":
        return list_samples([frames_of(video) for video in range(NUM_VIDEOS)])
    if kind == "shards":
        return list_samples(f"{root}/{{0..2}}.tar", "image")
    return list_samples(root / kind, "frames" if kind == "frames" else "video")


def as_it_is(frames: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
    """A transform that leaves frames as they are."""
    return frames.astype("float32")


def batches_of(samples: list[Sample], **options: Any) -> ClipBatches:
    """Batches of clips as they are, without masks."""
    shape = (2, HEIGHT, WIDTH, 3)
    options = {"transform": as_it_is, "masks": lambda *_: {}} | options
    options |= {"video_shape": shape, "seed": 3}
    return ClipBatches(samples, BATCH_SIZE, **options)


def seen(batch: dict[str, np.ndarray]) -> list[list[int]]:
    """The numbers of the frames in a batch, a list for each clip."""
    return [stamps(clip) for clip in batch["videos"]]


def _png(frame: np.ndarray) -> bytes:
    return cv2.imencode(".png", frame)[1].tobytes()
