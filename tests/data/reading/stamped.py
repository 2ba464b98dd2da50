"""Videos whose frames show their own numbers, for tests of exact reading."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

NUM_FRAMES = 120
HEIGHT, WIDTH = 64, 96


def stamped_frame(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A frame that shows its number in ten black or white blocks."""
    frame = np.full((height, width, 3), 40, np.uint8)
    for bit in range(10):
        if index >> bit & 1:
            frame[8:40, 8 + 8 * bit : 16 + 8 * bit] = 255
    return frame


def stamps(frames: np.ndarray) -> list[int]:
    """The numbers that frames show."""
    return [
        sum(int(frame[12:36, 10 + 8 * bit : 14 + 8 * bit].mean() > 128) << bit for bit in range(10))
        for frame in frames
    ]


def write_with_opencv(path: Path, codec: str, num_frames: int = NUM_FRAMES, size=(WIDTH, HEIGHT)):
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), 30, size)
    assert writer.isOpened()
    for index in range(num_frames):
        writer.write(cv2.resize(stamped_frame(index), size))
    writer.release()
    return path


def write_with_av(
    path: Path,
    codec: str,
    milliseconds: list[int] | None = None,
    keyframe_distance: int = 12,
    options: dict[str, str] | None = None,
    pixel_format: str = "yuv420p",
    codec_options: dict[str, str] | None = None,
    container_format: str | None = None,
    num_frames: int = NUM_FRAMES,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    rate: Fraction | int = 30,
) -> Path:
    """Write a video with PyAV; the test is skipped where it has no such codec."""
    import pytest  # imported here, because processes that draw batches do not need it

    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    time_base = 1 / Fraction(rate) if milliseconds is None else Fraction(1, 1000)
    width, height = size
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=codec_options or {})
        stream.height, stream.width, stream.pix_fmt = height, width, pixel_format
        stream.codec_context.gop_size = keyframe_distance
        stream.codec_context.time_base = time_base
        for index in range(num_frames):
            image = stamped_frame(index, height, width)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts = index if milliseconds is None else milliseconds[index]
            frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
