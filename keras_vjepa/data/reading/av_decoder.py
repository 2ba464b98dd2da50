"""Decode videos with PyAV, which offers FFmpeg's own settings (§3.4).

Frames that nobody wants are passed over: most encoders write frames that no other frame needs, a
third to two thirds of all, and those between the wanted ones are not decoded. Measured on 16 frames
of stride 4 of x264's default: 28 ms instead of 40 (340x256), 200 ms instead of 320 (720p).
"""

import itertools
import math
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_vjepa.data.reading.avi_chunks import check_frames_of_avi
from keras_vjepa.data.reading.decoders import (
    Frames,
    PacketIndex,
    check_same_size,
    why_not_opened,
)
from keras_vjepa.data.reading.gate import check_time
from keras_vjepa.data.reading.limits import MAX_ASPECT, ReadingLimits

# FFmpeg's names of formats whose files contain the video. Its other formats refer to other files,
# or are images or text, which FFmpeg shows as a video of one frame.
_FORMATS = (
    "apng,asf,asf_o,av1,avi,avs2,avs3,bink,cavsvideo,dirac,dnxhd,dv,evc,flic,flv,gif,"
    "gxf,h261,h263,h264,hevc,ivf,ivr,kux,live_flv,lxf,m4v,matroska,mjpeg,mjpeg_2000,mov,mp4,"
    "mpeg,mpegts,mpegvideo,mpjpeg,mtv,mvi,mxf,mxg,nsv,nut,nuv,obu,ogg,pva,rawvideo,rm,roq,smjpeg,"
    "smk,swf,ty,vc1,vc1test,vivo,vvc,webm,wtv,yuv4mpegpipe"
)

# Codecs whose decoders can be told to skip frames that no other frame needs, and skip nothing else.
# The decoder of AV1 skips wanted frames too, and those of VP8 and VP9 skip none.
_CODECS_THAT_SKIP = frozenset({"h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4"})


_lock = threading.Lock()


def has_av() -> bool:
    """Tell whether PyAV is installed."""
    # Without the lock, a thread could take the import for successful while it is failing in
    # another.
    with _lock:
        try:
            import av  # noqa: F401
        except ImportError:
            return False
        return True


class AVDecoder:
    """Decodes a video with PyAV; timestamps are in units of the stream's time base."""

    seek_margin = 0
    passes_over = True

    def __init__(self, path: str, limits: ReadingLimits) -> None:
        import av

        self._av = av
        self._path = path
        self._limits = limits
        # FFmpeg counts the padding of each row, up to a multiple of 64 pixels.
        most_rows = math.isqrt(MAX_ASPECT * limits.max_frame_pixels)
        self._max_pixels = str(limits.max_frame_pixels + 64 * most_rows)
        # One scaler for the whole file, because a new one for each frame takes 11 times as long.
        self._reformatter = av.video.reformatter.VideoReformatter()
        self.num_damaged = 0
        self.want(frozenset())
        self._container = self._open()
        self._start()

    def _open(self) -> Any:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        try:
            container = self._av.open(
                os.path.abspath(self._path),
                # `max_pixels` also limits the frames that are decoded to find out what the file
                # contains.
                options={**options, "max_pixels": self._max_pixels},
                # Titles are not used, so their encoding must not matter.
                metadata_errors="replace",
                timeout=self._limits.max_file_seconds,
            )
        except self._av.FFmpegError as error:
            self._check_resources(error)
            raise ValueError(why_not_opened(self._path)) from error
        return container

    def _check_resources(self, error: Exception) -> None:
        """Raise if time or memory was short, which says nothing about the file."""
        check_time()
        if isinstance(error, MemoryError):
            raise error

    def _stream_of(self, container: Any) -> Any:
        """Return the first stream of moving pictures."""
        attached = self._av.stream.Disposition.attached_pic
        streams = [s for s in container.streams.video if not s.disposition & attached]
        if not streams:
            raise ValueError("it has no video stream")
        return streams[0]

    def _start(self) -> None:
        self._stream = self._stream_of(self._container)
        self._context = self._stream.codec_context
        if self._context is None:
            raise ValueError("its video is of a codec that PyAV does not know")
        if self._context.width or self._context.height:
            self._limits.check_size(self._context.height, self._context.width)
        options = {"max_pixels": self._max_pixels}
        if self._context.name == "mjpeg":
            # Without this, a truncated picture is filled with pixels of another one, and no error
            # is raised.
            options["err_detect"] = "explode"
        self._context.options = options
        # One thread, because a loader runs many readers, and more threads would only compete.
        self._context.thread_count = 1
        self._is_intra_only = self._context.codec.intra_only
        self._can_skip = self._context.name in _CODECS_THAT_SKIP
        self._skips = False
        self.fps = float(self._stream.average_rate or 0)
        self.codec = self._context.codec.canonical_name
        self.time_unit = float(self._stream.time_base or 0)
        self._is_sought = False
        self._frames = self._decode()

    def rewind(self) -> None:
        """Go back to before the first frame."""
        self._container.close()
        self._container = self._open()
        self._start()

    def packet_index(self) -> PacketIndex | None:
        """Return an index of all frames by their packets; `None` if it cannot be trusted."""
        timestamps, is_keyframe, places = [], [], []
        with self._open() as container:
            stream = self._stream_of(container)
            try:
                for packet in container.demux(stream):
                    check_time()
                    if packet.is_corrupt:
                        return None
                    if packet.size and not packet.is_discard:
                        timestamps.append(math.nan if packet.pts is None else packet.pts)
                        is_keyframe.append(packet.is_keyframe)
                        places.append(packet.pos)
            except self._av.FFmpegError as error:
                self._check_resources(error)
                return None
            is_avi = container.format.name == "avi"
            if is_avi:
                check_frames_of_avi(self._path, len(timestamps), places)
            in_order = all(one < next for one, next in itertools.pairwise(timestamps))
            if self._context.has_b_frames and in_order:
                return None  # frames are not shown in this order, so the times are invented
            if is_avi and not _agrees(stream, places):
                is_keyframe = [False] * len(is_keyframe)
        return PacketIndex.from_packets(timestamps, is_keyframe)

    def seek(self, timestamp: float) -> None:
        """Go to the keyframe at a timestamp, or the last one before it."""
        self._frames = self._decode()
        self._is_sought = True
        try:
            self._container.seek(int(timestamp), stream=self._stream)
        except self._av.FFmpegError as error:
            self._check_resources(error)
            self._frames = iter(())  # pretend that the file ends here, so that it is read in order

    def _decode(self) -> Iterator[Any]:
        packets = self._container.demux(self._stream)
        while True:
            check_time()
            # A damaged packet is skipped. Each packet is tried once, so the loop ends.
            try:
                packet = next(packets, None)
                frames = [] if packet is None else self._decoded(packet)
            except self._av.FFmpegError as error:
                self._check_resources(error)
                self.num_damaged += 1
                continue
            if packet is None:
                return
            yield from frames

    def _decoded(self, packet: Any) -> list[Any]:
        time = packet.pts
        is_needless = time is not None and time < self._last_wanted and time not in self._wanted
        if is_needless and self._is_intra_only:
            return []
        if is_needless != self._skips and self._can_skip:
            # A frame that is not wanted must be decoded if another frame is predicted from it.
            self._context.skip_frame = "NONREF" if is_needless else "DEFAULT"
            self._skips = is_needless
        return packet.decode()

    def want(self, timestamps: frozenset[float]) -> None:
        """Say which frames matter; others before the last of them may be passed over."""
        self._wanted = timestamps
        self._last_wanted = max(timestamps, default=-math.inf)

    def advance(self) -> float | None:
        """Decode the next frame and return its timestamp, `None` at the end."""
        frame = next(self._frames, None)
        if frame is None:
            return None
        # If an index wrongly calls a frame a keyframe, the frames from there on would be broken.
        is_astray = self._is_sought and not frame.key_frame
        self._frame, self._is_sought = frame, False
        self.num_damaged += frame.is_corrupt
        return math.nan if frame.pts is None or is_astray else frame.pts

    def size(self) -> tuple[int, int]:
        """Return height and width of the frame last decoded, after rotation."""
        height, width = self._frame.height, self._frame.width
        return (width, height) if self._frame.rotation // 90 % 2 else (height, width)

    def write_frame(self, out: Frames) -> None:
        """Write the frame last decoded, RGB and upright, to uint8 (height, width, 3)."""
        rgb = self._reformatter.reformat(self._frame, format="rgb24", threads=1)
        # Rows are padded to a multiple of some bytes.
        rows = np.frombuffer(memoryview(rgb.planes[0]), np.uint8).reshape(rgb.height, -1)
        pixels = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3)
        # OpenCV rotates a phone's video upright automatically, but PyAV does not.
        upright = np.rot90(pixels, self._frame.rotation // 90)
        check_same_size(upright, out)
        out[...] = upright

    def close(self) -> None:
        """Free the file and the frames."""
        # The iterator and this decoder refer to each other. Without this, their frames would stay
        # in memory until Python collects reference cycles.
        self._frames = iter(())
        self._container.close()


def _agrees(stream: Any, places: list[int]) -> bool:
    """Tell whether the index of an AVI file names the places of the packets that are there."""
    header = 8  # the header of a packet, with its kind and size
    return places == [entry.pos + header for entry in stream.index_entries]
