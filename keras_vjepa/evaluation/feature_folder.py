"""Keep features in a folder, one .npy file for each video or image (§4.3, App. D).

    settings.json     what all features depend on: model, precision, windows, sizes
    sources.jsonl     the source of each file of features, and hashes of both; see
                      `feature_records.py`
    a/clip.mp4.npy    features of the file a/clip.mp4

Features are removed and made again if their source has been replaced by another file or if they are
damaged. A folder of an earlier version has no `sources.jsonl`; of its features, those that are
newer than their source files are kept.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_vjepa import files
from keras_vjepa.arguments import counted
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.media import NO_CONTENT
from keras_vjepa.data.reading.remote import ADDRESS
from keras_vjepa.data.sources.content_hashes import as_text, content_hash, content_hashes
from keras_vjepa.data.sources.names import absolute_name, below
from keras_vjepa.evaluation.feature_names import SOURCES_FILE, features_name, with_hash
from keras_vjepa.evaluation.feature_records import (
    FeatureRecord,
    append_record,
    read_records,
    write_records,
)
from keras_vjepa.evaluation.feature_settings import (
    check_settings,
    hash_of_settings,
    write_settings,
)
from keras_vjepa.evaluation.feature_shards import write_header

Rows = NDArray[np.float32]
# Names a video or an image by its path or its address.
Name = Path | str

_UNREADABLE = NO_CONTENT.hex()
# Number of names in one line of the log, at most.
_MOST_NAMED = 5

_LOG = logging.getLogger(__name__)


@dataclass
class FeaturePlan:
    """Says what is to be done in a folder of features.

    Attributes:
        outputs: for each video or image, the file of its features, below the folder.
        missing: the videos and images whose features are to be made.
        replaced: outputs that were removed because their source has been replaced by another file.
        damaged: outputs that were removed because they are not as they were written.
        unknown: outputs that were removed because nothing says what their source is.
    """

    outputs: dict[Name, str] = field(default_factory=dict)
    missing: list[Name] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class FeatureFolder:
    """Manages a folder of features, which no other run may use at the same time.

    Args:
        folder: the folder, which exists.
        settings: everything that the features depend on, as JSON; see `feature_settings.py`.
        preset: the folder of the model's preset.

    Raises:
        ValueError: if the folder holds features of other or unknown settings.
        OSError: if the folder cannot be read or written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], preset: Path) -> None:
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self._hash_of_settings = hash_of_settings(self.settings)
        self._records, damaged = read_records(folder / SOURCES_FILE)
        self._is_of_before = check_settings(folder, self.settings, self._records, preset)
        if damaged:
            _LOG.warning(
                "%s is damaged in %s: it is repaired, and the features of these are made anew.",
                folder / SOURCES_FILE,
                counted(damaged, "line"),
            )
            write_records(folder / SOURCES_FILE, self._records.values())

    # --- What is there ---------------------------------------------------------------------------

    def plan(self, root: Name, paths: Sequence[Name]) -> FeaturePlan:
        """Find out which features are missing; remove those that are no longer valid and log them.

        Args:
            root: the folder that was listed, also at an address; see `shared_root`.
            paths: videos and images below it.
        """
        if self._is_of_before:
            self._take_over(root, paths)
        contents = dict.fromkeys(paths, "")
        if self._records:
            hashes = content_hashes([str(path) for path in paths])
            contents = dict(zip(paths, as_text(hashes), strict=True))
        plan = FeaturePlan(self._outputs(root, contents))
        for path, features in zip(paths, self._hashes(plan), strict=True):
            self._plan_one(plan, path, contents[path], features)
        for problem, outputs in (
            ("of a file that was replaced since, made anew", plan.replaced),
            ("damaged, made anew", plan.damaged),
            (f"not in {SOURCES_FILE}, made anew", plan.unknown),
            ("of a file that is not there any more, kept", self._outputs_of_nothing(root, plan)),
        ):
            if outputs:
                count = counted(len(outputs), "file of features", "files of features")
                _LOG.warning("%s in %s %s: %s", count, self.folder, problem, _named(outputs))
        return plan

    def _plan_one(self, plan: FeaturePlan, path: Name, content: str, features: str) -> None:
        output = plan.outputs[path]
        record, target = self._records.get(output), self.folder / output
        if features == _UNREADABLE and not target.exists():
            plan.missing.append(path)
            return
        if record is None:
            plan.unknown.append(output)
        elif record.features != features:
            plan.damaged.append(output)
        elif content == _UNREADABLE:
            # The source cannot be read, which is reported elsewhere; it may be the same file as
            # before, so that its features stay.
            plan.missing.append(path)
            return
        elif record.content != content:
            plan.replaced.append(output)
        else:
            if record.source != absolute_name(path):
                self._note(output, path, content, features)
            return
        # The file is removed now, and not when it is made again, so that from here on all features
        # in the folder are valid.
        target.unlink()
        plan.missing.append(path)

    def _outputs(self, root: Name, contents: Mapping[Name, str]) -> dict[Name, str]:
        """Name the output of each source file; a source that has an output already keeps it."""
        # Some disks treat names that differ only in the case of letters as the same.
        taken = {name.casefold(): name for name in self._records}
        outputs, renamed = dict[Name, str](), []
        for path, content in contents.items():
            source = absolute_name(path)
            plain = features_name(below(root, path))
            own = with_hash(plain, source)
            if source in (self._source_of(plain), self._source_of(own)):
                outputs[path] = plain if self._source_of(plain) == source else own
            elif plain.casefold() not in taken or self._is_moved(plain, content):
                outputs[path] = plain
            else:
                outputs[path] = own
                renamed.append(own)
            taken.setdefault(outputs[path].casefold(), outputs[path])
        if renamed:
            _LOG.warning(
                "%s the same name as another one and got a longer one; %s lists both: %s",
                counted(len(renamed), "file has", "files have"),
                self.folder / SOURCES_FILE,
                _named(renamed),
            )
        return outputs

    def _source_of(self, output: str) -> str | None:
        return self._records[output].source if output in self._records else None

    def _is_moved(self, output: str, content: str) -> bool:
        """Tell whether an output was made from the same content under another path.

        The source may have been moved since, or be a copy.
        """
        record = self._records.get(output)
        return record is not None and record.content == content != _UNREADABLE

    def _hashes(self, plan: FeaturePlan) -> list[str]:
        if not self._records:
            return [_UNREADABLE] * len(plan.outputs)
        paths = [str(self.folder / output) for output in plan.outputs.values()]
        return as_text(content_hashes(paths))

    def _outputs_of_nothing(self, root: Name, plan: FeaturePlan) -> list[str]:
        if ADDRESS.match(os.fspath(root)) or not os.fspath(root):
            return []  # at an address, checking each file would take as long as reading it
        inside, listed = os.path.join(os.path.abspath(root), ""), {*plan.outputs.values()}
        return [
            output
            for output, record in self._records.items()
            if output not in listed
            and record.source.startswith(inside)
            and not os.path.lexists(record.source)
            and (self.folder / output).exists()
        ]

    def problems(self, plan: FeaturePlan, unreadable: Mapping[Name, str]) -> list[str]:
        """List the features that are missing or damaged at the end of a run.

        Args:
            plan: plan of the run.
            unreadable: files that have no features because they cannot be read.
        """
        return [
            str(self.folder / output)
            for (path, output), features in zip(
                plan.outputs.items(), self._hashes(plan), strict=True
            )
            if path not in unreadable and features != self._records[output].features
        ]

    # --- New features ----------------------------------------------------------------------------

    def write(
        self, path: Name, output: str, content: str, count: int, batches: Iterator[Rows]
    ) -> None:
        """Write the features of a file, which appear complete or not at all.

        Args:
            path: the video or image.
            output: the file of its features, as the plan names it.
            content: hash of the video's content from before it was read.
            count: number of rows.
            batches: the rows, in batches.

        Raises:
            OSError: if the features cannot be written.
        """
        with files.unfinished_file(self.folder / output) as unfinished:
            _write_rows(unfinished, count, batches)
            # The record is written before the block ends and the features appear, so that no
            # features are without a record.
            self._note(output, path, content, content_hash(unfinished).hex())

    def _note(self, output: str, path: Name, content: str, features: str) -> None:
        self._records[output] = self._record(output, path, content, features)
        append_record(self.folder / SOURCES_FILE, self._records[output])

    def _record(self, output: str, path: Name, content: str, features: str) -> FeatureRecord:
        source = absolute_name(path)
        return FeatureRecord(output, source, content, features, self._hash_of_settings)

    # --- Features of an earlier version ----------------------------------------------------------

    def _take_over(self, root: Name, paths: Sequence[Name]) -> None:
        """Add records for an earlier version's features if sound and newer than their sources."""
        for path in paths:
            relative = below(root, path)
            before, output = self.folder / f"{relative}.npy", features_name(relative)
            if _is_sound(before) and _is_younger(before, path):
                if before != self.folder / output:
                    (self.folder / output).parent.mkdir(parents=True, exist_ok=True)
                    files.move_file(before, self.folder / output)
                hashes = content_hash(path).hex(), content_hash(self.folder / output).hex()
                self._records[output] = self._record(output, path, *hashes)
        _LOG.warning(
            "%s was written by an earlier version, which did not note the source of each file: %s "
            "kept, those that are newer than the video or image of their name.",
            self.folder,
            counted(len(self._records), "file of features", "files of features"),
        )
        # The records are written first: if the run is killed before the settings are written, the
        # next one finds the records beside the old settings, and can go on.
        write_records(self.folder / SOURCES_FILE, self._records.values())
        write_settings(self.folder, self.settings)
        self._is_of_before = False


def _write_rows(unfinished: Path, count: int, batches: Iterator[Rows]) -> None:
    with open(unfinished, "wb") as file:
        for i, batch in enumerate(batches):
            if i == 0:
                write_header(file, "float32", (count, *batch.shape[1:]))
            file.write(batch.astype("<f4").tobytes())


def _is_sound(path: Path) -> bool:
    try:
        return path.is_file() and np.load(path, mmap_mode="r").dtype == np.float32
    except (OSError, ValueError, EOFError):
        return False


def _is_younger(features: Path, source: Name) -> bool:
    try:
        status = os.stat(source)
    except OSError:
        return False
    # A file that was moved there keeps the modification time of its content (mtime), but not its
    # time of change (ctime).
    return features.stat().st_mtime_ns > max(status.st_ctime_ns, status.st_mtime_ns)


def _named(outputs: Sequence[str]) -> str:
    shown = ", ".join(printable(name) for name in outputs[:_MOST_NAMED])
    return shown + (", ..." if len(outputs) > _MOST_NAMED else "")
