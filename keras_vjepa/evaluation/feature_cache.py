"""Compute the features of a frozen encoder once, and keep them on disk (§4.3, App. D.1).

A cache on disk is a folder:

    manifest.json   what the features depend on: encoder, clips, view, samples, precision
    00000.npy       features of the first samples
    00000.json      what is known of the files of these samples; see `feature_shards.py`
    ...

The name of the folder ends with a hash of the manifest, so that features of another encoder or of
other clips have a folder of their own. A shard (an .npy file) appears complete or not at all: a run
that was stopped continues with the first one that is missing. A shard that is damaged, or whose
samples' files have changed since, is named in the log and computed again. The arrays are
memory-mapped.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.backend import collectives, engine
from keras_vjepa.data.batches.features import Features
from keras_vjepa.data.batches.labelled import EvaluationBatches
from keras_vjepa.data.reading.video import way_of_reading
from keras_vjepa.data.sources.content_hashes import Hashes, content_hashes, size_of
from keras_vjepa.data.sources.samples import Sample
from keras_vjepa.evaluation.feature_shards import (
    keep_notes,
    read_shard,
    what_is_wrong,
    write_header,
    write_notes,
)
from keras_vjepa.evaluation.features import FeatureExtractor, why_unreadable
from keras_vjepa.locks import locked
from keras_vjepa.presets.fingerprints import fingerprint
from keras_vjepa.training.results import read_result

_LOG = logging.getLogger(__name__)

# Time between two lines that say how much is done.
_SECONDS_BETWEEN_LINES = 30


class Described(NamedTuple):
    """Holds all that features depend on; its attributes are arguments of `cached_features`."""

    extractor: FeatureExtractor
    batches: EvaluationBatches
    description: dict[str, Any]
    dtype: str = "float32"
    batches_per_shard: int = 16


def cached_features(
    folder: Path,
    name: str,
    extractor: FeatureExtractor,
    batches: EvaluationBatches,
    description: dict[str, Any],
    dtype: str = "float32",
    batches_per_shard: int = 16,
) -> Features:
    """Return the features of all samples of `batches`, and compute those not yet on disk.

    Args:
        folder: the folder that holds all caches.
        name: readable name of this cache, which precedes its hash.
        extractor: computes the features.
        batches: the samples, and how their clips are read.
        description: what else the features depend on, as JSON; each description has its own cache.
        dtype: "float32" or "float16", of the files.
        batches_per_shard: number of batches in a shard; a run that is stopped loses at most so
            many.

    Raises:
        OSError: if the disk is too small, or cannot be written.
        ValueError: for another dtype.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"`feature_dtype` must be 'float16' or 'float32'. Received: {dtype!r}")
    described = Described(extractor, batches, description, dtype, batches_per_shard)
    folder = _described_folder(folder, name, described)
    is_first = batches.process_index == 0
    # Other runs may use the same cache; they wait until the features are computed.
    with locked(folder, "`cache`", wait=True) if is_first else nullcontext():
        return _found_or_computed(folder, extractor, batches, dtype, batches_per_shard)


def are_kept(folder: Path, name: str, described: Described) -> bool:
    """Tell whether the folder has a file for each shard of some features.

    Args:
        folder: the folder that holds all caches.
        name: as in `cached_features`.
        described: the features.
    """
    own, _ = _folder_and_manifest(folder, name, described)
    count = len(range(0, described.batches.num_steps, described.batches_per_shard))
    return all((own / f"{number:05d}.npy").exists() for number in range(count))


def _found_or_computed(
    folder: Path,
    extractor: FeatureExtractor,
    batches: EvaluationBatches,
    dtype: str,
    batches_per_shard: int,
) -> Features:
    """Compute the shards that are missing or no longer valid, and return all features."""
    starts = range(0, batches.num_steps, batches_per_shard)
    paths = [folder / f"{number:05d}.npy" for number in range(len(starts))]
    size, samples = batches_per_shard * batches.batch_size, batches.samples
    contents, reading = None, way_of_reading(batches.limits)
    if batches.process_index == 0:
        contents = content_hashes([sample.source for sample in samples])
        for number, path in enumerate(paths):
            part = slice(number * size, (number + 1) * size)
            problem = path.exists() and what_is_wrong(
                path, samples[part], contents[part], dtype, reading
            )
            if problem:
                _LOG.warning("Features are computed anew: %s.", problem)
                path.unlink()
            elif path.exists():
                keep_notes(path, contents[part], reading)
    # All processes wait here until the first one has removed shards, and again until all have
    # looked, so that they agree on which shards are missing.
    collectives.wait_for_all()
    missing = [path for path in paths if not path.exists()]
    collectives.wait_for_all()
    if missing and contents is not None:
        _say_how_many(f"Computing features of {len(samples):,} samples", paths, missing)
    said = time.monotonic()
    for number, (path, start) in enumerate(zip(paths, starts, strict=True)):
        if path in missing:
            stop = min(start + batches_per_shard, batches.num_steps)
            parts = extractor.encode(batches, start, stop)
            if contents is not None:
                part = slice(number * size, (number + 1) * size)
                _write_shard(path, parts, batches, start, stop, dtype, contents[part], reading)
            else:
                deque(parts, maxlen=0)
            if contents is not None and time.monotonic() - said > _SECONDS_BETWEEN_LINES:
                left = [path for path in missing if not path.exists()]
                _say_how_many("Features", paths, left)
                said = time.monotonic()
    collectives.wait_for_all()
    shards: list[NDArray[Any]] = []
    unreadable: dict[str, str] = {}
    for path in paths:
        array, unread = read_shard(path)
        shards.append(array)
        unreadable |= unread
    return Features(samples, shards, unreadable)


def _say_how_many(what: str, paths: Sequence[Path], missing: Sequence[Path]) -> None:
    """Print to stderr how many parts are done, so that nobody waits before an empty screen."""
    done = len(paths) - len(missing)
    print(f"{what}: {done:,} of {len(paths):,} parts done.", file=sys.stderr, flush=True)


def _folder_and_manifest(folder: Path, name: str, described: Described) -> tuple[Path, str]:
    """Return the folder of these features, and the text of its manifest."""
    extractor, batches, description, dtype, batches_per_shard = described
    manifest = {
        **description,
        "dtype": dtype,
        "samples_per_shard": batches_per_shard * batches.batch_size,
        "backend": engine.name(),
        "encoder": fingerprint(extractor.classifier.backbone),
        "attend_across_clips": extractor.classifier.attend_across_clips,
        "clip": vars(batches.clip),
        "seed": batches.seed,
        "samples": hash_of_samples(batches.samples),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True)
    return folder / f"{name}-{hashlib.blake2b(text.encode()).hexdigest()[:16]}", text


def _described_folder(folder: Path, name: str, described: Described) -> Path:
    """Return the folder of these features, and write the manifest into it."""
    own, text = _folder_and_manifest(folder, name, described)
    if not own.exists() and described.batches.process_index == 0:
        _say_what_is_new(folder, name, json.loads(text))
    files.write_text(own / "manifest.json", text)
    return own


def _say_what_is_new(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Log how the most similar of the existing caches differs from the one that is needed."""
    differences: dict[Path, list[str]] = {}
    for path in sorted(folder.glob(f"{name}-*/manifest.json")):
        # A damaged manifest counts as different in every value.
        other = read_result(path) or {}
        names = sorted({*manifest, *other})
        differences[path.parent] = [n for n in names if manifest.get(n) != other.get(n)]
    if differences:
        nearest = min(differences, key=lambda one: len(differences[one]))
        _LOG.warning(
            "Features are computed anew: those in %s are of another %s.",
            nearest,
            ", ".join(differences[nearest]),
        )


def _write_shard(
    path: Path,
    parts: Iterator[NDArray[Any]],
    batches: EvaluationBatches,
    start: int,
    stop: int,
    dtype: str,
    contents: Hashes,
    reading: str,
) -> None:
    first, last = (min(s * batches.batch_size, len(batches.samples)) for s in (start, stop))
    done, unreadable = 0, {}
    # The file is not mapped into memory, because a full disk would then kill the process.
    with files.unfinished_file(path) as unfinished:
        with open(unfinished, "wb") as file:
            for features in parts:
                if not done:
                    shape = (last - first, *features.shape[1:])
                    _check_space(path.parent, shape, len(batches.samples) - first, np.dtype(dtype))
                    write_header(file, dtype, shape)
                unread = np.isnan(features[:, 0, 0, 0])
                for row in np.flatnonzero(unread).tolist():
                    position = first + done + row
                    unreadable[batches.samples[position].path] = why_unreadable(batches, position)
                rows = features.astype(dtype)
                rows[unread] = 0
                file.write(rows.tobytes())
                done += len(features)
        # The notes are written before the block ends and the features appear, so that a shard with
        # features always has its notes.
        write_notes(path, contents, unreadable, unfinished, reading)


def _check_space(
    folder: Path, shape: tuple[int, ...], num_samples: int, dtype: np.dtype[Any]
) -> None:
    needed = num_samples * int(np.prod(shape[1:])) * dtype.itemsize
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"The features need {needed / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB "
            "left. Take --feature_dtype float16, another --cache, or --online true"
        )


def hash_of_samples(samples: Sequence[Sample]) -> str:
    """Return a hash of the samples' paths and file sizes, without labels.

    Labels are left out because features do not depend on them.
    """
    digest = hashlib.blake2b()
    for sample in samples:
        digest.update(os.fsencode(f"{sample.path}\0{size_of(sample.source)}\n"))
    return digest.hexdigest()[:32]
