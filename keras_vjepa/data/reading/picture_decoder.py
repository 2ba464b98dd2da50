"""Read videos whose frames are pictures of their own, as if they were decoded (§3.4)."""

import numpy as np

from keras_vjepa.data.reading.decoders import Frames, PacketIndex
from keras_vjepa.data.reading.gate import check_time


class PictureDecoder:
    """Reads a video of pictures, any of which can be read without the others; a `Decoder`.

    Args:
        num_frames: number of pictures.
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
        """Read a frame, uint8 (height, width, 3), RGB and upright."""
        raise NotImplementedError

    def name_of(self, position: int) -> str:
        """Return the name of a frame in messages."""
        raise NotImplementedError

    def packet_index(self) -> PacketIndex | None:
        """Return an index whose timestamps are positions, and in which each is a keyframe."""
        return PacketIndex(np.arange(self.num_frames), np.arange(self.num_frames))

    def rewind(self) -> None:
        """Go back to before the first frame."""
        self._position = -1

    def seek(self, timestamp: float) -> None:
        """Go to the place before a frame."""
        self._position = int(timestamp) - 1

    def want(self, timestamps: frozenset[float]) -> None:
        """Ignore which frames matter, because none needs another."""

    def advance(self) -> float | None:
        """Go to the next frame and return its position, `None` at the end."""
        if self._position + 1 >= self.num_frames:
            return None
        self._position += 1
        return float(self._position)

    def size(self) -> tuple[int, int]:
        """Return height and width of the current frame."""
        height, width = self._named_picture().shape[:2]
        return height, width

    def write_frame(self, out: Frames) -> None:
        """Write the current frame to uint8 (height, width, 3)."""
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
        """Do nothing, because no file is open between two pictures."""
