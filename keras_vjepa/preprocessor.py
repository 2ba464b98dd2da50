"""Make the backbone's input from files: clips, views, normalised (§4.3, App. D, App. D.1).

This is the one module where the model side and the data side meet. `keras_vjepa.data` reads and
transforms; the settings that a model was trained with are kept in its preset, in
`preprocessor.json`.

Departures from the authors' evaluations: clips are not taken from random places but from the start
of each part of the video, so that features do not change from call to call; and frames in memory
that are exactly as many as a clip has are taken as that clip, whatever `frame_step` is.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Self, get_args

import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import (
    MOST_LONG,
    arguments_of,
    check_choice,
    check_colour,
    check_flag,
    check_size,
    check_whole,
    shown,
)
from keras_vjepa.backend import tf_data
from keras_vjepa.data.batches.actions import KeyFrameClips
from keras_vjepa.data.batches.clips import ClipSettings, read_clips
from keras_vjepa.data.batches.preprocessed import TrainingEpochs, ValidationEpochs
from keras_vjepa.data.reading.clip_indices import clip_frame_indices
from keras_vjepa.data.reading.decoders import Indices
from keras_vjepa.data.reading.image import read_image
from keras_vjepa.data.reading.limits import DEFAULT_LIMITS, ReadingLimits
from keras_vjepa.data.reading.locating import is_image
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.seconds import middle_second
from keras_vjepa.data.reading.video import VideoReader, open_video
from keras_vjepa.data.sources.inputs import Source, as_sources, is_one
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.boxes import BoxView
from keras_vjepa.data.transforms.crops import PIXEL_MEAN, PIXEL_STD
from keras_vjepa.data.transforms.resampling import Kernel
from keras_vjepa.data.transforms.training import ImageProbeTransform, VideoProbeTransform
from keras_vjepa.data.transforms.views import Rounding, center_view, three_views
from keras_vjepa.named_errors import named
from keras_vjepa.presets.preprocessing import changed, described_preprocessor
from keras_vjepa.presets.preset import (
    PREPROCESSOR_FILE,
    PresetName,
    PresetNames,
    find_preset,
    preset_folder,
)
from keras_vjepa.training.datasets import EpochDataset

Frames = NDArray[np.uint8]
Videos = NDArray[np.float32]
Augment = Callable[[Frames, np.random.Generator], Videos]


@keras.saving.register_keras_serializable("keras_vjepa")
class VJEPAVideoPreprocessor:
    """Turns videos and images into the backbone's input, as the evaluations do (App. D.1).

    Args:
        image_size: height and width of the clips in pixels, one int for squares. The frames are
            resized with their proportions kept, and cropped in the middle.
        num_frames: frames of a clip.
        frame_step: source frames per frame of a clip; a clip spans `num_frames * frame_step` of
            them. A clip of a shorter video has as many frames as fit in such steps, and repeats the
            last of them until it is full. Nothing is padded with black.
        num_clips: clips of a video, one from each of so many equal parts.
        num_views: 1, the middle; or 3, squares along the longer side.
        image_frames: how often an image is repeated: None for `num_frames`, or fewer, such as the
            `tubelet_size` of the backbone for a single tubelet.
        antialias: True resizes videos as Pillow and the processor of the transformers package do,
            which skip no pixel when a frame gets smaller; False resizes as OpenCV and the authors
            do. Images are always resized as with True.
        interpolation: how to resize, `"bilinear"` or `"bicubic"`.
        short_side: pixels that the shorter side of the frames is resized to before the crop, with
            one view; None for 256/224 of the crop, as the authors do. `image_size` itself shows
            square frames whole.
        crop_rounding: where a crop begins if its margin is half a pixel: `"even"`, at the nearest
            even pixel, as in the authors' code, or `"down"`, as in the transformers package.
        mean: mean of red, green and blue, subtracted from pixels in [0, 1]; default: ImageNet's.
        std: deviation of red, green and blue, which they are then divided by; default: ImageNet's.

    Call arguments:
        inputs: one video or image, or a list of several:
            a path (text or `pathlib`) of a video or an image;
            an array, or a tensor of torch, JAX or TensorFlow on any device, uint8 from 0 to 255 or
            floats from 0 to 1: a video `(frames, height, width, channels)` of any number of frames,
            or an image `(height, width, channels)`; the channels may precede height and width if
            this is unambiguous; a PIL image; a tensor of paths or of frames within `dataset.map` of
            TensorFlow; a list of pictures, arrays or PIL images, which are the frames of **one**
            video. For `num_frames=1`, that of an image model, they are as many images. Grey becomes
            RGB, and transparency is left out. Five axes are a list of videos.
        limits: time and pixels that a file may take.

    Returns:
        float32, normalised: `(batch, num_frames, height, width, 3)`, or, with several clips or
        views, `(batch, num_clips, num_views, num_frames, height, width, 3)`, as
        `VJEPAVideoClassifier` takes it.

    Raises:
        UnreadableVideoError: if a file cannot be read.
        ValueError: for arguments out of range, inputs of other kinds, with their place in a list,
            and images that are repeated less often than the videos beside them have frames.

    Example:

    >>> import numpy as np
    >>> from keras_vjepa import VJEPAVideoPreprocessor
    >>> preprocessor = VJEPAVideoPreprocessor(image_size=32, num_frames=4)
    >>> preprocessor(np.zeros((100, 48, 64, 3), np.uint8)).shape
    (1, 4, 32, 32, 3)
    """

    presets = PresetNames()

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        num_frames: int = 16,
        frame_step: int = 4,
        num_clips: int = 1,
        num_views: int = 1,
        image_frames: int | None = None,
        antialias: bool = False,
        interpolation: Kernel = "bilinear",
        short_side: int | None = None,
        crop_rounding: Rounding = "even",
        mean: Sequence[float] = PIXEL_MEAN,
        std: Sequence[float] = PIXEL_STD,
    ) -> None:
        check_size(image_size=image_size)
        check_whole(1, MOST_LONG, num_frames=num_frames, num_clips=num_clips, num_views=num_views)
        check_whole(1, frame_step=frame_step)
        check_whole(1, MOST_LONG, optional=True, image_frames=image_frames)
        check_flag(antialias=antialias)
        check_short_side(short_side, image_size, num_views)
        check_choice(get_args(Kernel), interpolation=interpolation)
        check_choice(get_args(Rounding), crop_rounding=crop_rounding)
        # A JSON file gives a tuple back as a list.
        self.image_size = image_size if isinstance(image_size, int) else (*image_size,)
        if num_views not in (1, 3):
            raise ValueError(f"`num_views` must be 1 or 3. Received: {num_views}")
        if num_views == 3 and not isinstance(self.image_size, int):
            raise ValueError(
                f"`image_size` must be one int for 3 views. Received: {self.image_size}"
            )
        self.num_frames = num_frames
        self.frame_step = frame_step
        self.num_clips = num_clips
        self.num_views = num_views
        self.image_frames = image_frames
        self.antialias = antialias
        self.interpolation = interpolation
        self.short_side = short_side
        self.crop_rounding = crop_rounding
        self.mean = check_colour("(-inf, inf)", mean=mean)
        self.std = check_colour("(0, inf)", std=std)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.get_config().items())
        return f"{type(self).__name__}({arguments})"

    def __call__(self, inputs: Any, limits: ReadingLimits = DEFAULT_LIMITS) -> Videos:
        if tf_data.is_symbolic(inputs):
            return tf_data.call_later(partial(self, limits=limits), inputs, self._shape(inputs))
        return self.batch(self.sources(inputs), limits)

    def sources(self, inputs: Any) -> list[Source]:
        """List the videos and images that the call would make a batch of, without reading them.

        Args:
            inputs: as in the call.

        Returns:
            Paths, and frames as uint8 RGB; each may be passed to the call by itself.

        Raises:
            ValueError: for inputs that the call refuses.
        """
        return as_sources(inputs, images_apart=self.num_frames == 1)

    def is_one(self, inputs: Any) -> bool:
        """Tell whether `inputs` are a single video or image, and not a list of several."""
        return is_one(inputs, images_apart=self.num_frames == 1)

    def batch(self, sources: Sequence[Source], limits: ReadingLimits = DEFAULT_LIMITS) -> Videos:
        """Read and transform the list of `sources`, or a part of it, as the call does.

        Args:
            sources: paths, and frames as uint8 RGB.
            limits: as in the call.

        Returns:
            A batch, as the call returns it.

        Raises:
            UnreadableVideoError: if a file cannot be read.
            ValueError: for images that are repeated less often than the videos beside them have
                frames.
        """
        samples = [self._clips(source, limits) for source in sources]
        if len({sample.shape for sample in samples}) > 1:
            raise ValueError(
                f"`image_frames` must be None or `num_frames`={self.num_frames} where images and "
                f"videos are in one list. Received: {self.image_frames}"
            )
        return np.stack(samples)

    def dataset(
        self,
        samples: Sequence[Sample],
        num_classes: int,
        batch_size: int = 8,
        training: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        num_workers: int = 2,
        max_bad_share: float = 0.05,
        limits: ReadingLimits = DEFAULT_LIMITS,
        augment: bool | Augment = False,
    ) -> EpochDataset:
        """Make a dataset for `fit` and `evaluate` of labelled files, read as they are needed.

        Args:
            samples: files with class numbers, such as `list_samples` gives.
            num_classes: number of classes.
            batch_size: videos in a batch.
            training: True gives full batches, in another order each epoch, and replaces a file that
                cannot be read by another one. False gives each file once and in order, and leaves
                out files that cannot be read.
            shuffle: False keeps the given order in training too.
            seed: seed of the order in training.
            num_workers: number of threads.
            max_bad_share: stop when more than this share of the files cannot be read.
            limits: time and pixels that a file may take.
            augment: for training: True takes clips from random places and transforms them as the
                authors train probes. Or a transform, called with the frames of a clip, uint8
                `(frames, height, width, 3)`, and a `numpy.random.Generator`. With either, each clip
                has one view.

        Returns:
            A `keras.utils.PyDataset` of `(inputs, labels)`, with a length.

        Raises:
            ValueError: for no samples, for labels that are missing or too large, and for options
                out of range.
        """

        def read(source: str | Media) -> Videos:
            return self._clips(source, limits)

        options: dict[str, Any] = {
            "read": read,
            "num_classes": num_classes,
            "num_workers": num_workers,
            "max_bad_share": max_bad_share,
            "seed": seed,
        }
        batches: TrainingEpochs | ValidationEpochs
        if training:
            options["augmented"] = self._augmented(augment, limits)
            batches = TrainingEpochs(samples, batch_size, shuffle=shuffle, **options)
        else:
            batches = ValidationEpochs(samples, batch_size, **options)
        return EpochDataset(batches, num_workers)

    def _shape(self, inputs: Any) -> tuple[int | None, ...]:
        """Return the shape that the call's result will have; None for axes not known."""
        given = tf_data.shape_of(inputs)
        if given is None:
            batch = None
        else:
            # The input is a path, an image or a video, or several paths or videos.
            several = 1 if inputs.dtype == "string" else 5
            batch = given[0] if len(given) == several else 1
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        frames = self.num_frames if self.image_frames is None else None
        clips = () if self.num_clips == self.num_views == 1 else (self.num_clips, self.num_views)
        return (batch, *clips, frames, height, width, 3)

    # --- One video or image ----------------------------------------------------------------------

    def _clips(self, source: Source | Media, limits: ReadingLimits) -> Videos:
        """Make one element of the batch that the call returns."""
        if isinstance(source, str | Media):
            if is_image(source):
                return self._image(read_image(source, limits))
            with open_video(source, limits=limits) as video:
                indices = self._indices(video.num_frames)
                return self._video(video.read(indices.ravel()))
        if source.ndim == 3:
            return self._image(source)
        as_it_is = len(source) == self.num_frames and self.num_clips == 1
        return self._video(source if as_it_is else source[self._indices(len(source)).ravel()])

    def _augmented(
        self, augment: bool | Augment, limits: ReadingLimits
    ) -> Callable[[str | Media, np.random.Generator], Videos] | None:
        """Return a function that makes augmented clips of a file; None for no augmentation.

        The clips are from random places of the file, and have one view each.
        """
        if not callable(augment):
            check_flag(augment=augment)
            if not augment:
                return None
            kind = ImageProbeTransform if self.num_frames == 1 else VideoProbeTransform
            augment = kind(self.image_size, mean=self.mean, std=self.std)

        def augmented(source: str | Media, rng: np.random.Generator) -> Videos:
            is_one = is_image(source)
            settings = ClipSettings(
                self.num_frames,
                self.frame_step,
                1 if is_one else self.num_clips,
                allow_clip_overlap=True,
            )
            videos = read_clips(source, settings, lambda one: augment(one, rng), rng, limits).videos
            if not is_one:
                return videos
            videos = videos[: self.image_frames]
            if self.num_clips == 1:
                return videos
            return np.repeat(videos[np.newaxis], self.num_clips, axis=0)

        return augmented

    def _indices(self, video_length: int) -> Indices:
        return clip_frame_indices(
            video_length,
            self.num_frames,
            self.frame_step,
            self.num_clips,
            allow_clip_overlap=True,
        )

    def _video(self, frames: Frames) -> Videos:
        clips = [self._views(clip) for clip in np.split(frames, self.num_clips)]
        return self._arranged(np.stack(clips))

    def _image(self, image: Frames) -> Videos:
        views = self._views(image[np.newaxis], antialias=True)
        count = self.num_frames if self.image_frames is None else self.image_frames
        clip = np.repeat(views, count, axis=1)
        return self._arranged(np.repeat(clip[np.newaxis], self.num_clips, axis=0))

    def _views(self, frames: Frames, antialias: bool = False) -> Videos:
        """Make the views of a clip, `(num_views, frames, height, width, 3)`."""
        colours: dict[str, Any] = {"mean": self.mean, "std": self.std}
        if self.num_views == 3:
            assert isinstance(self.image_size, int)
            return three_views(
                frames, self.image_size, self.antialias, self.interpolation, **colours
            )
        return center_view(
            frames,
            self.image_size,
            self.short_side,
            antialias=antialias or self.antialias,
            interpolation=self.interpolation,
            crop_rounding=self.crop_rounding,
            **colours,
        )[np.newaxis]

    def _arranged(self, clips: Videos) -> Videos:
        return clips[0, 0] if self.num_clips == self.num_views == 1 else clips

    # --- A key frame with boxes ------------------------------------------------------------------

    def key_frame(
        self,
        video: Any,
        boxes: Any,
        second: float | None = None,
        patch_size: int = 16,
        limits: ReadingLimits = DEFAULT_LIMITS,
        fits_in: tuple[int, int] | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Make the inputs of a `VJEPAActionDetector` from a video and boxes in it (App. D.2).

        The whole frame is kept: its shorter side is scaled to that of `image_size`, and it is
        padded to whole patches.

        Args:
            video: one video, as in the call.
            boxes: `(boxes, 4)`: left, top, right and bottom as shares of the frame.
            second: at which the boxes are; None for the middle. Frames of the clip are `frame_step`
                frames of a video of 30 frames a second apart, whatever this one has. Of frames in
                memory, of which no times are known, `frame_step` frames, around the middle.
            patch_size: of the backbone.
            limits: time and pixels that the file may take.
            fits_in: as in `BoxView`, for a backbone that does not take any rectangle.

        Returns:
            `videos`, `(1, num_frames, height, width, 3)`, and `boxes`, `(1, boxes, 4)` in pixels.

        Raises:
            UnreadableVideoError: if the file cannot be read, or does not have that second.
            ValueError: for several videos, a second of frames in memory, and boxes that are none.
        """
        sources = self.sources(video)
        if len(sources) != 1 or (not isinstance(sources[0], str) and sources[0].ndim != 4):
            raise ValueError(f"`video` must be one video. Received: {shown(video)}")
        shares = _checked_boxes(boxes)
        size = self.image_size
        view = BoxView(
            size if isinstance(size, int) else min(size),
            patch_size,
            mean=self.mean,
            std=self.std,
            fits_in=fits_in,
        )
        frames = self._around(sources[0], second, limits)
        clip, pixels = view(frames, shares)
        return {"videos": clip[np.newaxis], "boxes": pixels[np.newaxis]}

    def _around(self, source: Source, second: float | None, limits: ReadingLimits) -> Frames:
        """Read the frames of the clip around a second."""
        if isinstance(source, str | Media):
            clips = KeyFrameClips(self.num_frames, self.frame_step)
            if second is None:
                with open_video(source, limits=limits) as video:
                    second = middle_second(video)
            return clips.read(source, second, limits)
        if second is not None:
            raise ValueError(
                "`second` must be None for frames in memory, which have no times. "
                f"Received: {second}"
            )
        if len(source) == self.num_frames:
            return source
        places = (np.arange(self.num_frames) - self.num_frames // 2) * self.frame_step
        return source[(len(source) // 2 + places).clip(0, len(source) - 1)]

    # --- Long videos -----------------------------------------------------------------------------

    def num_windows(self, video_length: int, stride: int | None = None) -> int:
        """Return the number of windows that `windows` makes of a video of so many frames."""
        stride = self._stride(stride)
        beyond = max(0, video_length - self.num_frames * self.frame_step)
        # The second number is the smaller one if the stride is so long that windows leave gaps.
        return min(1 - (-beyond // stride), -(-video_length // stride))

    def repeats(self, video_length: int, stride: int | None = None) -> bool:
        """Tell whether the last window of a video of so many frames repeats the last frame."""
        last = self._stride(stride) * (self.num_windows(video_length, stride) - 1)
        return last + self.num_frames * self.frame_step > video_length

    def windows(
        self,
        source: str | os.PathLike[str],
        stride: int | None = None,
        limits: ReadingLimits = DEFAULT_LIMITS,
    ) -> tuple[int, Iterator[Videos]]:
        """Slide a clip over a whole video, in memory that does not grow with its length.

        Window i begins at frame `i * stride` and is a clip like those that the call makes. Unless
        the video ends where the last window does, that window reaches beyond the end and repeats
        the last frame. An image is one window.

        Args:
            source: a video or an image.
            stride: source frames between the starts of two windows. By default as many as a clip
                spans, so that windows do not overlap.
            limits: time and pixels that the file may take; the time is that for one window.

        Returns:
            The number of windows, and an iterator of `(num_frames, height, width, 3)`.

        Raises:
            UnreadableVideoError: if the file cannot be read, also while iterating.
            ValueError: for several clips or views.
        """
        if self.num_clips > 1 or self.num_views > 1:
            raise ValueError(
                "`num_clips` and `num_views` must be 1 for windows. "
                f"Received: {self.num_clips} and {self.num_views}"
            )
        path, stride = os.fspath(source), self._stride(stride)
        if is_image(path):
            return 1, iter([self._clips(path, limits)])
        video = open_video(path, limits=limits)
        starts = stride * np.arange(self.num_windows(video.num_frames, stride))
        if len(starts) == 1:
            return 1, self._sliding(video, self._indices(video.num_frames))
        # The frames of a clip over its whole span, as in a video that is long enough for it.
        span = self._indices(self.num_frames * self.frame_step + 1)
        rows = np.minimum(starts[:, np.newaxis] + span, video.num_frames - 1)
        return len(rows), self._sliding(video, rows)

    def _stride(self, stride: int | None) -> int:
        if stride is not None and stride < 1:
            raise ValueError(f"`stride` must be at least 1. Received: {stride}")
        return self.num_frames * self.frame_step if stride is None else stride

    def _sliding(self, video: VideoReader, rows: Indices) -> Iterator[Videos]:
        """Yield a clip for each row of frame numbers; decode and resize each frame only once."""
        upcoming, kept = iter(np.unique(rows).tolist()), dict[int, Videos]()
        with video:
            for row in rows.tolist():
                kept = {position: frame for position, frame in kept.items() if position >= row[0]}
                while row[-1] not in kept:
                    position = next(upcoming)
                    kept[position] = self._views(video.read([position]))[0, 0]
                yield np.stack([kept[position] for position in row])

    # --- Configuration ---------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {
            "image_size": self.image_size,
            "num_frames": self.num_frames,
            "frame_step": self.frame_step,
            "num_clips": self.num_clips,
            "num_views": self.num_views,
            "image_frames": self.image_frames,
            "antialias": self.antialias,
            "interpolation": self.interpolation,
            "short_side": self.short_side,
            "crop_rounding": self.crop_rounding,
            "mean": self.mean,
            "std": self.std,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**config)

    def save_to_preset(self, folder: PresetName) -> None:
        """Write `preprocessor.json` into a preset folder, beside the model that it belongs to."""
        described = keras.saving.serialize_keras_object(self)
        files.write_text(preset_folder(folder) / PREPROCESSOR_FILE, json.dumps(described, indent=2))

    @classmethod
    def from_preset(cls, preset: PresetName, **overrides: Any) -> Self:
        """Make the preprocessor of a preset, without downloading weights.

        Args:
            preset: as in `VJEPABackbone.from_preset`. If it has no `preprocessor.json`, the sizes
                are those of the backbone.
            overrides: constructor arguments to change.

        Raises:
            FileNotFoundError: if the folder is not a preset.
            ValueError: if `preset` does not exist, or an override is not an argument.
        """
        folder = find_preset(preset, load_weights=False)
        described_in, arguments = described_preprocessor(folder, cls.__name__)
        unknown = set(overrides) - set(cls().get_config())
        if unknown:
            raise ValueError(
                f"`overrides` must be arguments of {cls.__name__}. Received: {sorted(unknown)}"
            )
        with named(folder / described_in):
            return cls(**changed(arguments_of(cls, arguments), overrides))


def _checked_boxes(boxes: Any) -> np.ndarray:
    """Return boxes as an array, or raise `ValueError` for what are none, and for empty ones."""
    try:
        shares = np.asarray(boxes, np.float64)
    except (TypeError, ValueError):  # for texts, and rows that differ in length
        shares = np.zeros(0)
    if shares.ndim != 2 or shares.shape[1] != 4 or not np.isfinite(shares).all():
        raise ValueError(
            "`boxes` must be (boxes, 4): left, top, right and bottom as shares of the frame. "
            f"Received: {shown(boxes)}"
        )
    # Numbers of pixels lie outside of the frame; a box without area would get scores too.
    within = shares.clip(0, 1)
    for box in shares[(within[:, 2:] <= within[:, :2]).any(axis=1)]:
        raise ValueError(
            "`boxes` must have an area within the frame, from 0 to 1: left, top, right and bottom, "
            f"as shares and not in pixels. Received: {shown(box.tolist())}"
        )
    return shares


def check_short_side(
    short_side: int | None, image_size: int | tuple[int, int], num_views: int
) -> None:
    """Check that frames of a shorter side hold the crop, and that there is one view of them.

    Args:
        short_side: of the resized frames; None for the usual one.
        image_size: of the crop.
        num_views: of each clip.

    Raises:
        ValueError: if it is smaller than the crop, or given for three views.
    """
    if short_side is None:
        return
    sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_whole(min(sides), MOST_LONG, short_side=short_side)
    if num_views != 1:
        raise ValueError(
            "`short_side` must be None for 3 views, which are as high as the frames. "
            f"Received: {short_side}"
        )
