"""Time reading clips, and compare it with each decoding library alone (§3.4).

    keras-vjepa bench-decoding
    keras-vjepa bench-decoding --video my.mp4 --clips 50

A clip has 16 frames with a stride of 4, at a random place. A library alone means the shortest
correct loop with it: open, seek, decode, convert to RGB; decord is timed too where it is installed.
These loops are compared with the package's reader, for each decoder, and with the reader followed
by the pretraining transform, which is what a run waits for; the ratio to the best library alone is
printed last. All take turns in one process, each on one thread. The median of the processor times
of all clips is taken, so that other work on the machine disturbs little. Without `--video`, two
H.264 files are made with PyAV: 10 s of 340x256 and 30 s of 720p. This is not a test, because
machines differ.

With `--leaks`, 5,000 clips of a small file are read by each decoder instead, every tenth of them
from a copy that is cut, and memory and open files are printed on the way.
"""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from keras_vjepa import files
from keras_vjepa.arguments import check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.preparation.throughput import decoders as installed_decoders
from keras_vjepa.data.reading.av_decoder import has_av
from keras_vjepa.data.reading.clip_indices import clip_frame_indices
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_memory import lent_frames
from keras_vjepa.data.reading.video import open_video, video_info
from keras_vjepa.data.transforms.training import PretrainTransform

Read = Callable[[str, npt.NDArray[np.int64]], object]

FRAMES, STEP, CROP = 16, 4, 224


def make_video(path: Path, width: int, height: int, seconds: int) -> str:
    """Write a video of a moving, noisy picture with x264's default settings."""
    import av

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 16 + 8, width // 16 + 8, 3), np.uint8)
    scene = cv2.resize(coarse, (width + 128, height + 128), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 3, (height, width, 3))
    with files.unfinished_file(path) as unfinished, av.open(str(unfinished), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(30 * seconds):
            left, top = int(64 + 50 * np.sin(i / 20)), int(64 + 50 * np.cos(i / 27))
            image = scene[top : top + height, left : left + width] + np.roll(noise, 3 * i, 1)
            frame = image.clip(0, 255).astype(np.uint8)
            middle = (int(width / 2 + width / 3 * np.sin(i / 9)), height // 2)
            cv2.circle(frame, middle, height // 6, (200, 30, 90), -1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def opencv_alone(path: str, indices: npt.NDArray[np.int64]) -> object:
    """Read frames by the shortest correct loop with OpenCV."""
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    position = -1
    if indices[0] > 2 * FRAMES:
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(indices[0]))
        position = int(indices[0]) - 1
    frames = []
    for index in indices.tolist():
        while position < index:
            capture.grab()
            position += 1
        frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


def av_alone(path: str, indices: npt.NDArray[np.int64]) -> object:
    """Read frames by the shortest correct loop with PyAV."""
    import av

    reformatter = av.video.reformatter.VideoReformatter()
    frames = []
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        step = round(1 / float(stream.average_rate or 30) / float(stream.time_base or 1))
        wanted = {int(index) * step for index in indices}
        container.seek(min(wanted), stream=stream)
        for frame in container.decode(stream):
            if frame.pts in wanted:
                rgb = reformatter.reformat(frame, format="rgb24", threads=1)
                frames.append(rgb.to_ndarray())
            if frame.pts == max(wanted):
                break
    return frames


def decord_alone(path: str, indices: npt.NDArray[np.int64]) -> object:
    """Read frames by the shortest correct loop with decord, which gets some files' frames wrong."""
    import decord

    return decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()


def reader(decoder: str) -> Read:
    """Make a function that reads frames by the package's reader with a given decoder."""

    def read(path: str, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        with open_video(path, decoder) as video:
            return video.read(indices)

    return read


def reader_and_transform(decoder: str) -> Read:
    """Make a function that reads and transforms frames as `read_clips` does, at given places."""
    transform = PretrainTransform(CROP)

    def run(path: str, indices: npt.NDArray[np.int64]) -> object:
        distinct, places = np.unique(indices, return_inverse=True)
        with open_video(path, decoder) as video:
            shape = (len(distinct), video.info.height, video.info.width, 3)
            with lent_frames(shape) as memory:
                frames = video.read(distinct, memory)
                clip = frames if len(distinct) == len(indices) else frames[places]
                return transform(clip, np.random.default_rng(int(indices[0])))

    return run


def bench(path: str, clips: int) -> None:
    """Time all ways to read clips of a video, and print the results."""
    decoders = ("opencv", "av") if has_av() else ("opencv",)
    alone: dict[str, Read] = {"opencv alone": opencv_alone}
    if has_av():
        alone["av alone"] = av_alone
    if "decord" in installed_decoders():
        alone["decord alone"] = decord_alone
    ours = {f"reader, {name}": reader(name) for name in decoders}
    ours |= {f"reader and transform, {name}": reader_and_transform(name) for name in decoders}
    info, rng = video_info(path), np.random.default_rng(0)
    print(f"{Path(path).name}: {info.num_frames} frames of {info.width}x{info.height}")
    seconds: dict[str, list[float]] = {name: [] for name in (*alone, *ours)}
    for i in range(clips + 1):
        indices = clip_frame_indices(info.num_frames, FRAMES, STEP, rng=rng)[0]
        for name, read in (alone | ours).items():
            start = time.process_time()
            read(path, indices)
            if i:  # the first time is left out, because the reader also inspects the file then
                seconds[name].append(time.process_time() - start)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    best = min(alone, key=lambda name: medians[name])
    for name, times in seconds.items():
        # The ratio is taken for each clip by itself, since other work on the machine is the same
        # for two readings in a row.
        ratio = np.median(np.divide(seconds[best], times))
        print(f"  {name:28} {1 / medians[name]:7.1f} clips/s  {ratio:5.2f} of the best alone")


def watch_leaks(path: str, decoder: str, folder: Path, clips: int = 5000) -> None:
    """Read many clips of a sound and of a cut file; print memory and open files on the way."""
    rng = np.random.default_rng(0)
    run = reader_and_transform(decoder)
    num_frames = video_info(path).num_frames
    damaged = folder / "damaged.mp4"
    files.write_bytes(damaged, Path(path).read_bytes()[: -os.path.getsize(path) // 3])
    for i in range(clips + 1):
        if i % (clips // 10) == 0:
            status = Path("/proc/self/status").read_text().split()
            mib = int(status[status.index("VmRSS:") + 1]) / 1024
            open_files = len(os.listdir("/proc/self/fd"))
            print(f"{decoder}, {i:6} clips: {mib:.1f} MiB, {open_files} open files", flush=True)
        indices = clip_frame_indices(num_frames, FRAMES, STEP, rng=rng)[0]
        with contextlib.suppress(UnreadableVideoError):
            run(path if i % 10 else str(damaged), indices)


def main(arguments: list[str] | None = None, program: str = "bench_decoding.py") -> int:
    """Run the command, with `program` in front of its messages, and return the exit code."""
    parser = OneLineParser(
        prog=program,
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--video", help="the file to read (default: the two that are made)")
    parser.add_argument("--clips", type=int, default=20, help="clips read by each")
    parser.add_argument("--leaks", action="store_true", help="watch memory and open files instead")
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_whole(1, clips=options.clips)
    if options.video is not None and not options.video.strip():
        parser.error("--video must be a file. Received: nothing")
    if options.video is None and not has_av():
        parser.error("--video must be given without PyAV (pip install av)")
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if options.leaks:
                path = options.video or make_video(Path(folder, "small.mp4"), 96, 64, 5)
                for decoder in ("opencv", "av") if has_av() else ("opencv",):
                    watch_leaks(path, decoder, Path(folder))
                return 0
            paths = [options.video] if options.video else []
            if not paths:
                paths.append(make_video(Path(folder, "340x256.mp4"), 340, 256, 10))
                paths.append(make_video(Path(folder, "720p.mp4"), 1280, 720, 30))
            for path in paths:
                bench(path, options.clips)
        except UnreadableVideoError as error:
            parser.error(f"--video: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
