"""Read thousands of damaged files in a process of their own, and say what became of them.

    python -m tests.data.reading.fuzz --videos 2000 --images 1000 --seed 0

Small sound files of many containers and codecs are damaged: flipped bits, other bytes, numbers of
headers replaced, cut, blocks put in, taken out and exchanged. Each is read in the ways that a run
reads it: whole, one frame alone, as a clip for pretraining, and in windows for features; by each
decoder. Nothing may come of it but frames or the one error that names the file. A process that
dies or hangs is told apart by who was being read, and the rest is read by another.

Prints a table, and exits with 1 if something else happened. `--keep FOLDER` keeps those files.
"""

import argparse
import collections
import functools
import queue
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from keras_vjepa.data.reading.av_decoder import has_av

ROOT = Path(__file__).parents[3]
# A file that keeps its process busy for longer counts as a hang; the reader's own limit is lower.
HANG_SECONDS = 60.0
READER_SECONDS = 20.0
# In the place of a decoder of videos.
IMAGE = "image"
# More than any of these small files may take.
MOST_MIB = 2048

# ------------------------------------------------------------------------------------- sound files


def frames(count: int = 24, height: int = 64, width: int = 96) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 256, (12, 12, 3), np.uint8), (width + count, height))
    return [np.ascontiguousarray(noise[:, i : i + width]) for i in range(count)]


def _with_opencv(path: Path, codec: str) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, (96, 64))
    for frame in frames():
        writer.write(frame)
    writer.release()


def _with_av(path: Path, codec: str, container: str, options: dict[str, str], pixels: str) -> None:
    import av

    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixels
        stream.codec_context.gop_size = 8
        for frame in frames():
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())


OPENCV_VIDEOS = {"mp4v.mp4": "mp4v", "mjpg.avi": "MJPG", "xvid.avi": "XVID", "vp8.webm": "VP80"}
AV_VIDEOS: dict[str, tuple[str, str, dict[str, str], str]] = {
    "h264.mp4": ("libx264", "mp4", {"movflags": "faststart"}, "yuv420p"),
    "fragments.mp4": ("libx264", "mp4", {"movflags": "frag_keyframe+empty_moov"}, "yuv420p"),
    "h264.mkv": ("libx264", "matroska", {}, "yuv420p"),
    "h264.ts": ("libx264", "mpegts", {}, "yuv420p"),
    "h264.flv": ("libx264", "flv", {}, "yuv420p"),
    "h264.avi": ("libx264", "avi", {}, "yuv420p"),
    "hevc.mp4": ("libx265", "mp4", {}, "yuv420p"),
    "vp9.webm": ("libvpx-vp9", "webm", {}, "yuv420p"),
    "mpeg4.mp4": ("mpeg4", "mp4", {}, "yuv420p"),
    "mjpeg.mov": ("mjpeg", "mov", {}, "yuvj420p"),
    "mpeg2.mpg": ("mpeg2video", "mpeg", {}, "yuv420p"),
    "mpeg2.mxf": ("mpeg2video", "mxf", {}, "yuv420p"),
    "wmv2.wmv": ("wmv2", "asf", {}, "yuv420p"),
    "a.gif": ("gif", "gif", {}, "rgb8"),
    "ffv1.nut": ("ffv1", "nut", {}, "yuv420p"),
}


def sound_videos(names: Sequence[str] = ()) -> dict[str, bytes]:
    """Content of a sound file for each container and codec that this machine can write.

    Args:
        names: which of them; all by default.
    """
    wanted = names or (*OPENCV_VIDEOS, *AV_VIDEOS)
    with tempfile.TemporaryDirectory() as folder:
        for name in OPENCV_VIDEOS.keys() & wanted:
            _with_opencv(Path(folder, name), OPENCV_VIDEOS[name])
        if has_av():
            import av

            for name in AV_VIDEOS.keys() & wanted:
                if AV_VIDEOS[name][0] in av.codecs_available:
                    _with_av(Path(folder, name), *AV_VIDEOS[name])
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def sound_images() -> dict[str, bytes]:
    image = frames(1)[0]
    kinds = ("png", "jpg", "webp", "bmp", "tif", "gif")
    images = {f"a.{kind}": cv2.imencode(f".{kind}", image)[1].tobytes() for kind in kinds}
    images["grey.png"] = cv2.imencode(".png", image[..., 0].astype(np.uint16) * 256)[1].tobytes()
    lossy = [cv2.IMWRITE_WEBP_QUALITY, 50]
    images["lossy.webp"] = cv2.imencode(".webp", image, lossy)[1].tobytes()
    progressive = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    images["progressive.jpg"] = cv2.imencode(".jpg", image, progressive)[1].tobytes()
    return images


# ------------------------------------------------------------------------------------------ damage

NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0xFFFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)


def _place(content: bytearray, rng: random.Random) -> int:
    """A place, half of the time near an end, where headers and indices are."""
    size = len(content)
    near = min(size, 1024)
    kind = rng.random()
    if kind < 0.35:
        return rng.randrange(near)
    return size - 1 - rng.randrange(near) if kind < 0.5 else rng.randrange(size)


def flip_bits(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 5, 30))):
        content[_place(content, rng)] ^= 1 << rng.randrange(8)


def replace_bytes(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 10, 100))):
        content[_place(content, rng)] = rng.randrange(256)


def replace_numbers(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 4))):
        place, layout = _place(content, rng), rng.choice((">I", "<I", ">H", "<H"))
        number = rng.choice(NUMBERS) & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF)
        packed = struct.pack(layout, number)
        content[place : place + len(packed)] = packed


def cut(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(1, len(content)) :]


def cut_out(content: bytearray, rng: random.Random) -> None:
    place = _place(content, rng)
    del content[place : place + rng.choice((1, 4, 17, 300))]


def insert(content: bytearray, rng: random.Random) -> None:
    place = _place(content, rng)
    content[place:place] = rng.randbytes(rng.choice((1, 4, 17, 300)))


def repeat(content: bytearray, rng: random.Random) -> None:
    place = _place(content, rng)
    content[place:place] = content[place : place + rng.choice((4, 64, 2000))]


def blank(content: bytearray, rng: random.Random) -> None:
    place, length = _place(content, rng), rng.choice((4, 64, 2000))
    content[place : place + length] = bytes(len(content[place : place + length]))


def exchange_blocks(content: bytearray, rng: random.Random) -> None:
    first, second = sorted(rng.randrange(len(content)) for _ in "ab")
    length = min(rng.choice((4, 64, 2000)), second - first, len(content) - second)
    blocks = content[first : first + length], content[second : second + length]
    content[second : second + length], content[first : first + length] = blocks


def exchange_boxes(content: bytearray, rng: random.Random) -> None:
    """Of an MP4 file, its outermost boxes; of others, whatever looks alike."""
    boxes, place = [], 0
    while place + 8 <= len(content) and len(boxes) < 50:
        size = max(8, struct.unpack_from(">I", content, place)[0])
        boxes.append(bytes(content[place : place + size]))
        place += size
    rng.shuffle(boxes)
    content[:] = b"".join(boxes)


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bits,
    flip_bits,
    replace_bytes,
    replace_numbers,
    replace_numbers,
    cut,
    cut_out,
    insert,
    repeat,
    blank,
    exchange_blocks,
    exchange_boxes,
)


def damaged(sound: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of damaged files; the same for the same seed."""
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        name = sorted(sound)[i % len(sound)]
        content = bytearray(sound[name])
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(DAMAGES)(content, rng)
            content = content or bytearray(b"\0")
        yield f"{i:05d}_{name}", bytes(content)


# ----------------------------------------------------------------- the process that reads the files


def read_in_all_ways(path: str, decoder: str) -> str:
    """Read a file as runs do. Returns "frames" or "named", and what is wrong otherwise."""
    from functools import partial

    from keras_vjepa import VJEPAVideoPreprocessor
    from keras_vjepa.data.batches import clips
    from keras_vjepa.data.reading import video
    from keras_vjepa.data.reading.errors import UnreadableVideoError
    from keras_vjepa.data.reading.image import read_image
    from keras_vjepa.data.reading.limits import ReadingLimits
    from keras_vjepa.data.sources.folders import is_image
    from keras_vjepa.data.transforms.training import PretrainTransform

    rng = np.random.default_rng(0)
    transform = partial(PretrainTransform(32), rng=rng)
    preprocessor = VJEPAVideoPreprocessor(32, num_frames=4, frame_step=2)
    try:
        if decoder == IMAGE:
            read_image(path)
            if not is_image(path):
                return "frames"
        else:
            # What pretraining and features open is opened by the same decoder.
            opened = partial(video.open_video, decoder=decoder)
            vars(clips)["open_video"] = opened
            sys.modules["keras_vjepa.preprocessor"].open_video = opened  # type: ignore[attr-defined]
            limits = ReadingLimits(seconds=READER_SECONDS)
            with video.open_video(path, decoder, limits) as reader:
                whole = reader.read(range(min(reader.num_frames, 64)))
            with video.open_video(path, decoder, limits) as reader:
                last = min(reader.num_frames, len(whole)) - 1
                alone = reader.read([last])[0]
            if not _may_be_the_same(alone, whole[last], path):
                return "another frame alone"
        clips.read_clips(path, clips.ClipSettings(8, 2), transform, rng)
        for _ in preprocessor.windows(path)[1]:
            pass
    except UnreadableVideoError as error:
        return "named" if "\n" not in str(error) else "named in several lines"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    return "frames"


@functools.cache
def _sound_frames(name: str) -> np.ndarray:
    from keras_vjepa.data.reading.video import open_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(sound_videos((name,))[name])
        with open_video(path) as reader:
            return reader.read(range(reader.num_frames)).astype(np.int16)


def _may_be_the_same(alone: np.ndarray, in_row: np.ndarray, path: str) -> bool:
    """Whether two frames are not clearly two of the sound file; damage may show in either."""
    if np.array_equal(alone, in_row):
        return True
    sound = _sound_frames(Path(path).name.split("_", 1)[1])
    if alone.shape != sound.shape[1:]:
        return True
    first, second = (
        set(np.flatnonzero(np.abs(sound - frame).mean((1, 2, 3)) < 2)) for frame in (alone, in_row)
    )
    return not first or not second or bool(first & second)


def memory_mib() -> int:
    """Most memory that this process ever had, in MiB; 0 where it is not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def read_for_another_process() -> None:
    """Read the files whose paths come in, and say before and after each what is done."""
    cv2.setNumThreads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        decoder, path = line.rstrip("\n").split(" ", 1)
        print(read_in_all_ways(path, decoder), memory_mib(), sep="\t", flush=True)


# ------------------------------------------------------------------------- the process that watches


class Reader:
    """A process that reads files, begun anew when it dies or hangs."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.data.reading.fuzz", "--read"]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        assert self._lines.get(timeout=300) == "ready"
        self.peak_mib = 0

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Libraries may write here too.
            if line.startswith("ready") or "\t" in line:
                self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def read(self, path: Path, decoder: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{decoder} {path}\n")
        self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=HANG_SECONDS)
        except queue.Empty:
            self.close()
            return "HANG"
        if not line:
            return f"CRASH {self._process.wait()}"
        outcome, mib = line.split("\t")
        grown = int(mib) - self.peak_mib if self.peak_mib else 0
        self.peak_mib = int(mib)
        return outcome if grown < MOST_MIB else f"{grown} MiB"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@dataclass
class Report:
    """How often each outcome was seen for each sound file, and files of the unwanted ones."""

    outcomes: "collections.Counter[tuple[str, str, str]]" = field(
        default_factory=collections.Counter
    )
    unwanted: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    peak_mib: int = 0

    def lines(self) -> Iterator[str]:
        for (name, decoder, outcome), count in sorted(self.outcomes.items()):
            yield f"{name:16} {decoder:7} {outcome:24} {count}"
        totals = collections.Counter[str]()
        for (_, _, outcome), count in self.outcomes.items():
            totals[outcome] += count
        yield f"in all: {dict(totals)}; slowest {self.slowest[0]:.1f} s ({self.slowest[1]}); "
        yield f"most memory of a process: {self.peak_mib} MiB"
        yield from self.unwanted


def fuzz(videos: int, images: int, seed: int, keep: Path | None = None) -> Report:
    """Read so many damaged videos and images."""
    report, reader = Report(), Reader()
    decoders = ("opencv", "av") if has_av() else ("opencv",)
    jobs = [(file, decoders) for file in damaged(sound_videos(), videos, seed)]
    jobs += [(file, (IMAGE,)) for file in damaged(sound_images(), images, seed)]
    with tempfile.TemporaryDirectory() as folder:
        for (name, content), ways in jobs:
            path = Path(folder, name)
            path.write_bytes(content)
            for decoder in ways:
                start = time.monotonic()
                outcome = reader.read(path, decoder)
                report.slowest = max(report.slowest, (time.monotonic() - start, name))
                report.peak_mib = max(report.peak_mib, reader.peak_mib)
                report.outcomes[name[6:], decoder, outcome] += 1
                if outcome not in ("frames", "named"):
                    report.unwanted.append(f"{name} {decoder}: {outcome}")
                    if keep:
                        keep.mkdir(parents=True, exist_ok=True)
                        (keep / f"{seed}_{name}").write_bytes(content)
                if outcome.startswith(("HANG", "CRASH")) or reader.peak_mib > MOST_MIB:
                    reader.close()
                    reader = Reader()
            path.unlink()
    reader.close()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for files that did something else")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_for_another_process()
        return
    report = fuzz(options.videos, options.images, options.seed, options.keep)
    print("\n".join(report.lines()))
    sys.exit(bool(report.unwanted))


if __name__ == "__main__":
    main()
