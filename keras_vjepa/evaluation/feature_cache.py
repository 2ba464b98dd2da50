"""Features of a frozen encoder, computed once and kept on disk (§4.3, App. D.1).

A cache on disk is a folder:

    manifest.json   what the features are of: encoder, clips, view, samples, precision
    00000.npy       features of the first samples, and 00000.json what is known of their files,
    00000.json      as `feature_shards.py` has it
    ...

Its name ends with a hash of the manifest, so that features of another encoder or of other clips
have a folder of their own. A shard appears complete or not at all: a run that was stopped goes on
with the first one that is missing. One that is damaged, or has features of files that were changed
since, is named and computed anew. The arrays are memory-mapped.
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
from typing import Any

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

# Between two lines on how far it is.
_SECONDS_BETWEEN_LINES = 30


def cached_features(
    folder: Path,
    name: str,
    extractor: FeatureExtractor,
    batches: EvaluationBatches,
    description: dict[str, Any],
    dtype: str = "float32",
    batches_per_shard: int = 16,
) -> Features:
    """Return the features of all samples of `batches`, computed unless the disk has them.

    Args:
        folder: where caches are kept.
        name: of this one, in front of its hash; for people.
        extractor: computes the features.
        batches: the samples, and how their clips are read.
        description: what else the features depend on, as JSON; a difference is another cache.
        dtype: "float32" or "float16", of the files.
        batches_per_shard: a run that is stopped loses at most so many.

    Raises:
        OSError: if the disk is too small, or cannot be written.
        ValueError: for another dtype.
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"`feature_dtype` must be 'float16' or 'float32'. Received: {dtype!r}")
    description = {
        **description,
        "dtype": dtype,
        "samples_per_shard": batches_per_shard * batches.batch_size,
    }
    folder = _described_folder(folder, name, extractor, batches, description)
    is_first = batches.process_index == 0
    # Others may use the same cache, and wait for what is being computed.
    with locked(folder, "`cache`", wait=True) if is_first else nullcontext():
        return _found_or_computed(folder, extractor, batches, dtype, batches_per_shard)


def _found_or_computed(
    folder: Path,
    extractor: FeatureExtractor,
    batches: EvaluationBatches,
    dtype: str,
    batches_per_shard: int,
) -> Features:
    """Compute the shards that are not there or no longer hold; return all."""
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
    # So that all processes miss the same.
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
    """Tell on stderr how far it is, for nobody to wait before an empty screen."""
    done = len(paths) - len(missing)
    print(f"{what}: {done:,} of {len(paths):,} parts done.", file=sys.stderr, flush=True)


def _described_folder(
    folder: Path,
    name: str,
    extractor: FeatureExtractor,
    batches: EvaluationBatches,
    description: dict[str, Any],
) -> Path:
    """Return the folder of these features, with the manifest in it."""
    manifest = {
        **description,
        "backend": engine.name(),
        "encoder": fingerprint(extractor.classifier.backbone),
        "attend_across_clips": extractor.classifier.attend_across_clips,
        "clip": vars(batches.clip),
        "seed": batches.seed,
        "samples": hash_of_samples(batches.samples),
    }
    text = json.dumps(manifest, indent=2, sort_keys=True)
    own = folder / f"{name}-{hashlib.blake2b(text.encode()).hexdigest()[:16]}"
    if not own.exists() and batches.process_index == 0:
        _say_what_is_new(folder, name, json.loads(text))
    files.write_text(own / "manifest.json", text)
    return own


def _say_what_is_new(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Log why the caches that are there do not serve, by the one that is most alike."""
    differences: dict[Path, list[str]] = {}
    for path in sorted(folder.glob(f"{name}-*/manifest.json")):
        # A damaged one is unlike any other.
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
    # Not mapped into memory: where the disk becomes full, that would end the process.
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
        # Before the block ends: a shard is there when its features are.
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
    """Return a hash of the samples' paths and sizes; labels do not change features."""
    digest = hashlib.blake2b()
    for sample in samples:
        digest.update(os.fsencode(f"{sample.path}\0{size_of(sample.source)}\n"))
    return digest.hexdigest()[:32]
