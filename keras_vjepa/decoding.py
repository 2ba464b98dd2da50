"""Make batches for training a decoder: regions, their features, and noise (§6, App. F).

The hidden region is one box of the block sampler over all time, whatever masks the encoder was
trained with.
"""

import json
import sys
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import MOST_SEED, check_choice, check_number, check_size, check_whole
from keras_vjepa.backend.distribution import ALONE, DataParallel
from keras_vjepa.configuration import replace, values
from keras_vjepa.data.batches.clips import check_cache
from keras_vjepa.data.batches.indexed import check_reading
from keras_vjepa.data.batches.mask_kinds import Grid, MultiBlockMask
from keras_vjepa.data.batches.mask_sampler import MaskSampler
from keras_vjepa.data.batches.pretraining import ClipBatches
from keras_vjepa.data.random_streams import random_stream
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.data.transforms.crops import Colour
from keras_vjepa.fine_tuning import colours_of
from keras_vjepa.models.backbone import VJEPABackbone
from keras_vjepa.models.diffusion_network import KINDS, check_network
from keras_vjepa.presets.preset import check_preset
from keras_vjepa.tasks.decoder import FeatureDecoder, check_decoder
from keras_vjepa.tasks.region_features import TARGET, RegionFeatures
from keras_vjepa.training.description import defining
from keras_vjepa.training.optimizer import LEARNING_DTYPES, check_moments, check_updates
from keras_vjepa.training.results import damaged_result, need_no_remaking, read_result
from keras_vjepa.training.resumable import check_folder, check_run
from keras_vjepa.types import Batch

Floats = NDArray[np.float32]
# "nois" in ASCII: keeps these draws apart from others made from the same seed and step.
_NOISE_STREAM = 0x6E6F6973
# Number of clips, at least, whose pixels are measured beforehand.
_MEASURED_CLIPS = 64
# Options that may change when a run goes on. In place of their paths, samples and weights are
# compared.
_FREE = {
    "preset", "data", "num_workers", "read_ahead", "max_bad_share", "checkpoint_every",
    "log_every", "keep_last", "keep_every", "cache_gib",
}  # fmt: skip

# The options of a run whose preset is saved.
FINISHED_FILE = "finished.json"


def region_in_tokens(region: Sequence[int], encoder: VJEPABackbone) -> tuple[int, int]:
    """Compute how many rows and columns of tokens a region has.

    Args:
        region: height and width in pixels.
        encoder: the encoder.

    Raises:
        ValueError: for a region that patches do not divide, or that leaves nothing around it.
    """
    patch, (_, *most) = encoder.patch_size, encoder.grid_shape
    rows, columns = (side // patch for side in region)
    if any(side % patch for side in region) or rows > most[0] or columns > most[1]:
        raise ValueError(
            f"`region` must be multiples of {patch}, the side of a patch, up to {patch * most[0]} "
            f"and {patch * most[1]}. Received: {tuple(region)}"
        )
    if [rows, columns] == [*most]:
        raise ValueError(
            "`region` must leave something around it to predict from. "
            f"Received: {tuple(region)}, the whole frame"
        )
    return rows, columns


def region_sampler(grid: Grid, rows: int, columns: int, seed: int = 0) -> MaskSampler:
    """Make the block sampler that hides one box of a size over all time.

    Args:
        grid: the encoder's tokens by time, row and column.
        rows: rows of the box.
        columns: columns of the box.
        seed: seed of the places.

    Example:

    >>> from keras_vjepa.decoding import region_sampler
    >>> region_sampler((2, 4, 4), 2, 2)(step=0, batch_size=3)["target_indices_0"].shape
    (3, 8)
    """
    # A little more than the box's area, which the sampler rounds down to whole tokens.
    share = min(1.0, (rows * columns + 0.5) / (grid[1] * grid[2]))
    mask = MultiBlockMask(1, share, aspect_ratio=(rows / columns, rows / columns))
    return MaskSampler([mask], grid, truncation="batch_min", seed=seed)


@dataclass(frozen=True)
class Regions:
    """Cuts the pixels of regions out of clips.

    Args:
        grid: the encoder's tokens by time, row and column.
        patch_size: side of a patch in pixels.
        rows: rows of tokens of a region.
        columns: columns of tokens of a region.
        size: height and width that regions are scaled to.
        mean: mean of red, green and blue that was subtracted from clips.
        std: deviation by which they were divided.
    """

    grid: Grid
    patch_size: int
    rows: int
    columns: int
    size: tuple[int, int]
    mean: Colour
    std: Colour

    def place(self, targets: NDArray[np.int32]) -> tuple[int, int]:
        """Return the top and the left of a region in pixels, from the tokens in it."""
        first = int(targets[0]) % (self.grid[1] * self.grid[2])
        row, column = divmod(first, self.grid[2])
        return row * self.patch_size, column * self.patch_size

    def pixels(self, videos: Floats, targets: NDArray[np.int32]) -> Floats:
        """Cut the region out of each clip.

        Args:
            videos: normalised clips, `(batch, frames, height, width, 3)`.
            targets: tokens of the regions, `(batch, tokens)`.

        Returns:
            Clips of the regions in [-1, 1], `(batch, frames, *size, 3)`.
        """
        height, width = self.rows * self.patch_size, self.columns * self.patch_size
        mean, std = np.asarray(self.mean, "float32"), np.asarray(self.std, "float32")
        found = []
        for video, indices in zip(videos, targets, strict=True):
            top, left = self.place(indices)
            cut = video[:, top : top + height, left : left + width] * std + mean
            found.append(np.stack([self._sized(2 * frame - 1) for frame in cut]))
        return np.clip(np.stack(found), -1, 1).astype("float32")

    def _sized(self, frame: Floats) -> Floats:
        if frame.shape[:2] == self.size:
            return frame
        smaller = any(new < old for new, old in zip(self.size, frame.shape[:2], strict=True))
        how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(frame, self.size[::-1], interpolation=how), "float32")


def check_shares(shares: Sequence[float]) -> None:
    """Check the shares of the kinds of condition, in the order of `KINDS`.

    Raises:
        ValueError: if they are not one number for each kind, or all are 0.
    """
    for share in shares:
        check_number("[0, 1]", kinds=share)
    if len(shares) != len(KINDS) or not sum(shares):
        raise ValueError(
            f"`kinds` must be shares of {', '.join(KINDS)}, not all 0. Received: {tuple(shares)}"
        )


@dataclass
class DecoderBatches:
    """Makes the batches of a `FeatureDecoder`, each a function of the seed and the step.

    Args:
        clips: batches of clips, masked by `region_sampler`.
        features: the models that compute features.
        regions: cuts the regions out.
        shares: how often each kind of condition comes, in the order of `KINDS`. A share of "none"
            is what classifier-free guidance needs.
        num_steps: number of timesteps of the decoder.
    """

    clips: ClipBatches
    features: RegionFeatures
    regions: Regions
    shares: Sequence[float]
    num_steps: int

    @property
    def samples(self) -> Sequence[Sample]:
        """Return the samples that the batches are made of."""
        return self.clips.samples

    @property
    def error(self) -> Exception | None:
        """Return the error that ended a stream; None if there was none."""
        return self.clips.error

    def paths(self, step: int) -> list[str]:
        """List the files that the batch of a step is made of."""
        return self.clips.paths(step)

    def batch(self, step: int) -> Batch:
        """Make the batch of a step."""
        return self._with_features(step, self.clips.batch(step))

    def stream(self, start: int = 0, stop: int | None = None) -> Generator[Batch, None, None]:
        """Yield the batches of the steps from `start` up to `stop`; without `stop`, for ever."""
        source = self.clips.stream(start, stop)
        try:
            for step, batch in enumerate(source, start):
                yield self._with_features(step, batch)
        finally:
            source.close()

    def _with_features(self, step: int, batch: Mapping[str, Any]) -> Batch:
        videos, targets = np.asarray(batch["videos"]), np.asarray(batch[TARGET])
        clips = self.regions.pixels(videos, targets)
        # Drawn for the global batch, of which this process has its slice.
        rows = slice(self.clips.process_index * len(clips), None)
        draws = random_stream(self.clips.seed, _NOISE_STREAM, step)
        whole = self.clips.batch_size
        kinds = draws.choice(len(KINDS), whole, p=np.asarray(self.shares) / sum(self.shares))
        timesteps = draws.integers(0, self.num_steps, whole)
        noise = draws.standard_normal((whole, *clips.shape[1:]), dtype="float32")
        kinds = kinds[rows][: len(clips)].astype("int32")
        return {
            "clips": clips,
            "noise": noise[rows][: len(clips)],
            "timesteps": timesteps[rows][: len(clips)].astype("int32"),
            "features": self.features.of_kinds(batch, kinds, self.clips.process_index),
            "kinds": kinds,
        }


def check_decode_options(config: Any) -> None:
    """Check the options of the recipe, before anything is made of them.

    Args:
        config: config of the recipe.

    Raises:
        ValueError: for the first option that is out of range; the message names it.
    """
    check_choice(LEARNING_DTYPES, dtype=config.dtype)
    check_whole(0, MOST_SEED, seed=config.seed)
    check_size(region=config.region)
    check_size(optional=True, decoded_size=config.decoded_size)
    check_shares(config.kinds)
    config.network.check(check_network)
    config.decoder.check(check_decoder)
    config.batches.check(check_reading, seed=config.seed)
    config.batches.check(check_cache)
    config.transform.make(crop_size=32)
    config.clip.make(frames_per_clip=1)
    config.run.check(check_run)
    config.learning_rate.make(total_steps=config.run.steps)
    # The optimizer itself is not made here: its variables would start JAX and TensorFlow, before
    # they are told of the other processes.
    for check in (check_moments, check_updates, _check_rest_of_optimizer):
        config.optimizer.check(check)


def _check_rest_of_optimizer(weight_decay: float, clip_after: int) -> None:
    check_number("[0, inf)", weight_decay=weight_decay)
    check_whole(0, clip_after=clip_after)


def check_decode_files(config: Any, workdir: Path) -> None:
    """Check the files and folders that the recipe's config names.

    Args:
        config: config of the recipe.
        workdir: folder of the run.

    Raises:
        ValueError: for a config without a preset.
        OSError: if preset or folder cannot be what they are said to be.
    """
    check_folder(workdir)
    if not config.preset:
        raise ValueError("`preset` must be given: a pretraining run's. Received: none")
    check_preset(config.preset)


def description_of(config: Any, decoder: FeatureDecoder) -> dict[str, Any]:
    """Describe a run by what determines its numbers.

    Args:
        config: config of the recipe.
        decoder: the decoder, which knows the weights of the preset.
    """
    return {**defining(values(config), _FREE), "preset_weights": decoder.made_for}


def write_options(config: Any, workdir: Path) -> None:
    """Write all options of a finished run into its folder."""
    files.write_text(workdir / FINISHED_FILE, json.dumps(values(config), indent=1))


def save_alone(decoder: FeatureDecoder, weights: Sequence[NDArray[Any]], folder: Path) -> None:
    """Save the preset of a decoder that several devices may hold, from weights on this one.

    Args:
        decoder: the decoder.
        weights: values of its weights.
        folder: folder of the preset.
    """
    alone = FeatureDecoder.from_config(decoder.get_config())
    alone.set_weights(weights)
    alone.save_to_preset(folder)


def is_finished(config: Any, workdir: Path, is_first: bool = True) -> bool:
    """Tell whether a run with these options has saved its preset, and it is undamaged.

    Of data and a preset at other paths it is not told here whether they are the same.

    Args:
        config: config of the recipe.
        workdir: folder of the run.
        is_first: whether this process says so, or that a damaged preset is made anew.
    """
    stored, preset = read_result(workdir / FINISHED_FILE), workdir / "preset"
    free = _FREE - {"preset", "data"}
    if stored is None or defining(stored, free) != defining(values(config), free):
        return False
    problem = damaged_result(workdir, [], [preset.name])
    if not preset.is_dir():
        problem = f"{preset} is missing"
    finished = need_no_remaking(workdir, problem, is_first)
    if finished and is_first:
        print(
            f"{workdir} holds this run, finished: {config.run.steps:,} steps. "
            "Take another --workdir to train again.",
            file=sys.stderr,
        )
    return finished


def with_colours(config: Any) -> Any:
    """Set a config to the colours of its preset, unless options say how pixels are normalised.

    Otherwise what is recorded of a run would be the usual colours, which it did not use. What is
    wrong with a preset is said when its model is loaded, after the data are listed.

    Args:
        config: config of the recipe.
    """
    try:
        used = colours_of(config.preset, config.transform.arguments)
    except (OSError, ValueError):
        return config
    shown = {name: getattr(config.transform, name) for name in used}
    return replace(config, **{k: v for k, v in used.items() if tuple(v) != tuple(shown[k])})


def region_clips(
    config: Any,
    samples: Sequence[Sample],
    encoder: VJEPABackbone,
    region: tuple[int, int],
    size: tuple[int, int],
) -> tuple[ClipBatches, Regions]:
    """Make batches of clips with hidden regions, and what cuts the pixels of these out.

    Args:
        config: config of the recipe.
        samples: the videos.
        encoder: the encoder that the clips are for.
        region: rows and columns of tokens of a region.
        size: height and width that regions are scaled to.
    """
    # Options of the config come before the preset's own colours.
    transform = config.transform.make(crop_size=encoder.image_size, **colours_of(config.preset))
    clips = config.batches.make(
        samples=samples,
        transform=transform,
        masks=region_sampler(encoder.grid_shape, *region, config.seed),
        clip=config.clip.make(frames_per_clip=encoder.num_frames),
        seed=config.seed,
    )
    cut = (encoder.grid_shape, encoder.patch_size, *region, size)
    return clips, Regions(*cut, transform.mean, transform.std)


def pixel_statistics(clips: ClipBatches, regions: Regions) -> tuple[float, float]:
    """Measure mean and deviation of the pixels of some regions, which are in [-1, 1].

    All processes read the same ones, so that they agree.

    Args:
        clips: batches of clips with hidden regions, of all processes together.
        regions: cuts the regions out.

    Returns:
        Mean and deviation, rounded to hundredths; the deviation is at least .01.
    """
    steps = range(-(-_MEASURED_CLIPS // clips.batch_size))
    batches = [clips.batch(step) for step in steps]
    pixels = [regions.pixels(np.asarray(one["videos"]), np.asarray(one[TARGET])) for one in batches]
    whole = np.concatenate(pixels).astype("float64")
    return round(float(whole.mean()), 2), max(round(float(whole.std()), 2), 0.01)


def load_decoder(name: str) -> FeatureDecoder:
    """Load a decoder; a preset of something else is refused by the option's name.

    Raises:
        FileNotFoundError: if the folder holds no decoder.
    """
    try:
        return FeatureDecoder.from_preset(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("`preset`", "`decoder`")) from None


def make_decoder(
    config: Any,
    samples: Sequence[Sample],
    features: RegionFeatures,
    parallel: DataParallel = ALONE,
) -> tuple[FeatureDecoder, DecoderBatches]:
    """Make a decoder, compiled, and its batches; set Keras' precision and random seed.

    Args:
        config: config of the recipe.
        samples: the videos.
        features: the models that compute features.
        parallel: devices and processes.
    """
    keras.config.set_dtype_policy(config.dtype)
    keras.utils.set_random_seed(config.seed)
    encoder = features.pretrainer.encoder
    rows, columns = region_in_tokens(config.region, encoder)
    size = config.decoded_size or config.region
    grid = (encoder.grid_shape[0], rows, columns)
    network = config.network.make(
        clip_shape=(encoder.num_frames, *size), feature_dim=features.width, grid_shape=grid
    )
    parallel.check_batch_size(config.batches.batch_size)
    clips, regions = region_clips(config, samples, encoder, (rows, columns), size)
    more: dict[str, Any] = {}
    if config.decoder.prediction_type != "noise":
        more["pixel_statistics"] = pixel_statistics(clips, regions)
    decoder = config.decoder.make(network=network, made_for=features.fingerprint, **more)
    schedule = config.learning_rate.make(total_steps=config.run.steps)
    decoder.compile(config.optimizer.make(learning_rate=schedule))
    steps = decoder.noise_schedule.num_steps
    return decoder, DecoderBatches(parallel.share(clips), features, regions, config.kinds, steps)
