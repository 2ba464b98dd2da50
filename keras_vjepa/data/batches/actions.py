"""Make batches of clips around key frames with their boxes, for a detector (App. D.2).

    inputs   videos (batch, frames, height, width, 3), boxes (batch, boxes, 4) in pixels
    targets  float32 (batch, boxes, actions), 1 where a box has an action
    weights  float32 (batch, boxes), 0 where there is no box

All clips have room for the same number of boxes; places without a box are zeros.

Departure from the usual code, which takes the mean of the loss over the boxes that happen to be in
the batch of a device: here a box has the same weight in every batch, the room divided by the mean
number of boxes. Keras' mean over the room is then, on average, the mean over the boxes, and does
not depend on how a batch is divided.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from keras_vjepa.arguments import MOST_LONG, check_number, check_whole
from keras_vjepa.data.batches.indexed import IndexedBatches, ShuffledBatches
from keras_vjepa.data.reading.errors import UnreadableVideoError
from keras_vjepa.data.reading.frame_memory import lent_frames
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.seconds import frames_at, seconds_around
from keras_vjepa.data.reading.video import open_video
from keras_vjepa.data.sources.ava import ActionSample
from keras_vjepa.data.transforms.boxes import BoxTransform, BoxView
from keras_vjepa.types import Batch

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class KeyFrameClips:
    """Says how the clip around a key frame is taken from a video (App. D.2).

    Args:
        num_frames: number of frames of a clip.
        frame_step: distance between two of them, in frames of `fps`.
        fps: frames per second in which the distance is counted, whatever the video's rate is; AVA
            has 30.
        first_second: second of the original with which each file begins; 900 for frames that were
            extracted in the usual way.

    Raises:
        ValueError: if an argument is out of its range.
    """

    num_frames: int = 16
    frame_step: int = 4
    fps: float = 30.0
    first_second: float = 0.0

    def __post_init__(self) -> None:
        check_whole(1, MOST_LONG, num_frames=self.num_frames)
        check_whole(1, frame_step=self.frame_step)
        check_number("(0, 100000]", fps=self.fps)
        check_number("[0, 1000000]", first_second=self.first_second)

    def read(
        self, source: str | Media, second: float, limits: ReadingLimits = DEFAULT_LIMITS
    ) -> NDArray[np.uint8]:
        """Read the frames of a clip, `(num_frames, height, width, 3)`.

        Args:
            source: the video, or its folder of frames.
            second: second of the original video.
            limits: time and pixels that the file may take.

        Raises:
            UnreadableVideoError: if the video cannot be read, or ends before that second.
        """
        if second < self.first_second:
            name = source if isinstance(source, str) else source.name
            raise UnreadableVideoError(
                name, f"second {second:g} lies before its `first_second`={self.first_second:g}"
            )
        seconds = seconds_around(
            second - self.first_second, self.num_frames, self.frame_step, self.fps
        )
        with open_video(source, limits=limits) as video:
            distinct, places = np.unique(frames_at(video, seconds), return_inverse=True)
            shape = (len(distinct), video.info.height, video.info.width, 3)
            with lent_frames(shape) as memory:
                return video.read(distinct, memory)[places]


@dataclass(frozen=True)
class _Clip:
    """Holds a transformed clip and its boxes, with their numbers among the sample's boxes."""

    videos: Floats
    boxes: Floats
    rows: NDArray[np.int64]


@dataclass
class ActionBatches(ShuffledBatches[_Clip, tuple[Batch, Floats, Floats]]):
    """Makes endless training batches `(inputs, targets, weights)`; see the top of the module.

    The batches are shuffled, divided among processes and resumable as in pretraining. A clip that
    cannot be read is named in the log, and another one takes its place. See `IndexedBatches` for
    the other arguments.

    Args:
        transform: augmentation of clips and boxes.
        clip: how a clip is taken from its video.
        num_actions: number of actions of the targets.
        max_boxes: the most boxes of a clip; if there are more, some are chosen at random.
        limits: time and pixels that a file may take; a file that takes more is unreadable.

    Attributes:
        boxes_per_clip: mean number of boxes of a sample, of which at most `max_boxes` count.

    Raises:
        ValueError: for sizes that do not fit, and for samples without any box.
    """

    samples: Sequence[ActionSample]
    transform: BoxTransform = field(kw_only=True)
    clip: KeyFrameClips = field(kw_only=True)
    num_actions: int = field(kw_only=True)
    max_boxes: int = field(default=16, kw_only=True)
    limits: ReadingLimits = field(default=DEFAULT_LIMITS, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(1, MOST_LONG, num_actions=self.num_actions, max_boxes=self.max_boxes)
        counts = [min(len(sample.boxes), self.max_boxes) for sample in self.samples]
        self.boxes_per_clip = sum(counts) / len(counts)
        if not self.boxes_per_clip:
            raise ValueError("`samples` must have boxes. Received: none")

    def _content(self, sample: ActionSample, rng: np.random.Generator) -> _Clip:  # type: ignore[override]
        frames = self.clip.read(sample.source, sample.second, self.limits)
        shares = sample.shares(*frames.shape[1:3])
        clip, boxes, inside = self.transform(frames, shares, rng)
        rows = np.flatnonzero(inside)
        if len(rows) > self.max_boxes:
            rows = np.sort(rng.choice(rows, self.max_boxes, replace=False))
        return _Clip(clip, boxes[rows], rows)

    def _assembled(self, step: int, items: list) -> tuple[Batch, Floats, Floats]:  # type: ignore[type-arg]
        room = (len(items), self.max_boxes)
        boxes = np.zeros((*room, 4), np.float32)
        targets = np.zeros((*room, self.num_actions), np.float32)
        weights = np.zeros(room, np.float32)
        for row, (sample, clip) in enumerate(items):
            for place, number in enumerate(clip.rows.tolist()):
                boxes[row, place] = clip.boxes[place]
                targets[row, place, list(sample.actions[number])] = 1
                weights[row, place] = self.max_boxes / self.boxes_per_clip
        videos = np.stack([clip.videos for _, clip in items])
        return {"videos": videos, "boxes": boxes}, targets, weights


@dataclass(frozen=True)
class ActionClip:
    """Holds a clip to test with, and its boxes.

    Attributes:
        sample: the key frame.
        videos: the clip, `(frames, height, width, 3)`.
        boxes: `(room, 4)`, the sample's boxes in pixels of the clip, followed by zeros.
        shares: `(boxes, 4)`, the sample's boxes as shares of the frame, as they are reported.
    """

    sample: ActionSample
    videos: Floats
    boxes: Floats
    shares: NDArray[np.float64]


@dataclass
class ActionTestClips(IndexedBatches[ActionClip | None, list[ActionClip]]):
    """Reads the clip of every key frame once and in order; clips may differ in size.

    A clip that cannot be read is named in the log and left out, so that its boxes count as missed.
    See `IndexedBatches` for the other arguments.

    Args:
        view: the view of clips and boxes.
        clip: how a clip is taken from its video.
        max_boxes: the most boxes of a clip; no sample may have more (see `split_boxes`).
        limits: time and pixels that a file may take; a file that takes more is unreadable.
    """

    samples: Sequence[ActionSample]
    view: BoxView = field(kw_only=True)
    clip: KeyFrameClips = field(kw_only=True)
    max_boxes: int = field(default=16, kw_only=True)
    limits: ReadingLimits = field(default=DEFAULT_LIMITS, kw_only=True)

    @property
    def num_steps(self) -> int:
        """Return the number of steps of `stream`."""
        return -(-len(self.samples) // self.batch_size)

    def _read(self, position: int) -> ActionClip | None:
        if position >= len(self.samples):
            return None
        sample = self.samples[position]
        if sample.path in self.bad_files:
            return None
        try:
            frames = self.clip.read(sample.source, sample.second, self.limits)
        except UnreadableVideoError as error:
            self._note_bad_file(sample.path, str(error), "Left out, so its boxes count as missed")
            return None
        shares = sample.shares(*frames.shape[1:3])
        videos, boxes = self.view(frames, shares)
        room = np.zeros((self.max_boxes, 4), np.float32)
        room[: len(boxes)] = boxes
        return ActionClip(sample, videos, room, shares)

    def _assembled(self, step: int, items: list[ActionClip | None]) -> list[ActionClip]:
        return [item for item in items if item is not None]

    def stream(
        self, start: int = 0, stop: int | None = None
    ) -> Generator[list[ActionClip], None, None]:
        """Yield the clips of each step that can be read, from `start` to `stop` or the last."""
        return super().stream(start, self.num_steps if stop is None else min(stop, self.num_steps))

    def of_one_size(self) -> Iterator[list[ActionClip]]:
        """Yield groups of consecutive clips of the same size, at most `batch_size` at a time."""
        waiting: list[ActionClip] = []
        for clips in self.stream():
            for clip in clips:
                other = waiting and waiting[0].videos.shape != clip.videos.shape
                if other or len(waiting) == self.batch_size:
                    yield waiting
                    waiting = []
                waiting.append(clip)
        if waiting:
            yield waiting


def predicted(
    clips: ActionTestClips,
    predict: Callable[[Batch], NDArray[np.float32]],
) -> Iterator[tuple[ActionClip, NDArray[np.float32]]]:
    """Predict the actions of all boxes by a model.

    Args:
        clips: the clips to test with.
        predict: a function that takes `videos` and `boxes` of `batch_size` clips of one size, and
            returns probabilities `(batch, boxes, actions)`.

    Yields:
        Each clip, and the probabilities of its boxes, `(boxes, actions)`.
    """
    for group in clips.of_one_size():
        # Every group gets the same number of clips, because the model would be compiled again for a
        # different number.
        filled = [*group, *[group[-1]] * (clips.batch_size - len(group))]
        batch = {name: np.stack([getattr(c, name) for c in filled]) for name in ("videos", "boxes")}
        probabilities = predict(batch)
        for clip, rows in zip(group, probabilities, strict=False):
            yield clip, rows[: len(clip.shares)]
