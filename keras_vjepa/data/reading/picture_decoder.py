"""Read videos whose frames are pictures of their own, as if they were decoded (§3.4)."""

import numpy as np

from keras_vjepa.data.reading.decoders import Frames, PacketIndex
from keras_vjepa.data.reading.gate import check_time


class PictureDecoder:
    """A `Decoder` of pictures, any of which can be had without the others.

    Args:
        num_frames: how many there are.
        fps: frames per second; 0.0 if unknown.
    """

    codec = "images"
    num_damaged = 0
    seek_margin = 0
    passes_over = True

    def __init__(self, num_frames: int, fps: float) -> None:
        self.num_frames = num_frames
        self.fps = fps
        self.time_unit = 1 / fps if fps else 0.0
        self._position = -1

    def picture(self, position: int) -> Frames:
        """Give a frame, uint8 (height, width, 3), RGB and upright."""
        raise NotImplementedError

    def name_of(self, position: int) -> str:
        """Say what a frame is called in messages."""
        raise NotImplementedError

    def packet_index(self) -> PacketIndex | None:
        return PacketIndex(np.arange(self.num_frames), np.arange(self.num_frames))

    def rewind(self) -> None:
        self._position = -1

    def seek(self, timestamp: float) -> None:
        self._position = int(timestamp) - 1

    def want(self, timestamps: frozenset[float]) -> None:
        pass  # no frame needs another

    def advance(self) -> float | None:
        if self._position + 1 >= self.num_frames:
            return None
        self._position += 1
        return float(self._position)

    def size(self) -> tuple[int, int]:
        height, width = self._named_picture().shape[:2]
        return height, width

    def write_frame(self, out: Frames) -> None:
        picture = self._named_picture()
        if picture.shape != out.shape:
            height, width = out.shape[:2]
            raise ValueError(
                f"its frames must be of one size, {width}x{height} as its first. "
                f"{self.name_of(self._position)} is {picture.shape[1]}x{picture.shape[0]}"
            )
        out[...] = picture

    def _named_picture(self) -> Frames:
        check_time()
        try:
            return self.picture(self._position)
        except ValueError as error:
            raise ValueError(f"{self.name_of(self._position)}: {error}") from error

    def close(self) -> None:
        pass  # nothing is open between two pictures
