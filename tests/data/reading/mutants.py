"""Small sound files of many containers and codecs, and damaged ones made of them.

The damage: flipped bits, other bytes, numbers of headers replaced, cut, blocks put in, taken out
and exchanged, two files spliced, the ending of another kind of file. The same seed makes the same.
"""

import random
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from keras_vjepa.data.reading.av_decoder import has_av
from tests.data.reading.stamped import HEIGHT, WIDTH, stamped_frame

# ------------------------------------------------------------------------------------- sound files


def frames(count: int = 24) -> list[np.ndarray]:
    """Frames that show their number, above a picture that moves."""
    rng = np.random.default_rng(0)
    below = HEIGHT - 40
    noise = cv2.resize(rng.integers(0, 256, (5, 12, 3), np.uint8), (WIDTH + count, below))
    made = [stamped_frame(i) for i in range(count)]
    for i, frame in enumerate(made):
        frame[-below:] = noise[:, i : i + WIDTH]
    return made


def _with_opencv(path: Path, codec: str) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, (WIDTH, HEIGHT))
    for frame in frames():
        writer.write(frame)
    writer.release()


def _with_av(path: Path, codec: str, container: str, options: dict[str, str], pixels: str) -> None:
    import av

    with av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
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


def splice(content: bytearray, other: bytes, rng: random.Random) -> None:
    """The end, or all, of another file behind the beginning of this one."""
    if rng.random() < 0.7:
        del content[rng.randrange(1, len(content)) :]
    content += other[rng.choice((0, rng.randrange(len(other)))) :]


def damaged(sound: dict[str, bytes], count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of damaged files; the same for the same seed.

    Args:
        sound: contents of sound files by name.
        count: how many damaged ones.
        seed: of everything random.
    """
    names = sorted(sound)
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        name = names[i % len(names)]
        content = bytearray(sound[name])
        if rng.random() < 0.1:
            splice(content, sound[rng.choice(names)], rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(DAMAGES)(content, rng)
            content = content or bytearray(b"\0")
        if rng.random() < 0.05:
            name += Path(rng.choice(names)).suffix
        yield f"{i:05d}_{name}", bytes(content)
