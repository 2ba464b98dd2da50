"""Check every file of a data set before a run meets it (§3.4: 2 M videos from many places).

Of files that are named twice or hold the same bytes, the first one is kept.
"""

import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from keras_vjepa import files
from keras_vjepa.arguments import check_choice, check_whole, counted
from keras_vjepa.data.preparation.inspection import Inspection, Problem, VideoReport
from keras_vjepa.data.preparation.journal import Journal, each_with_state, table
from keras_vjepa.data.processes.serving import ProcessFailure
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.data.reading.frame_folder import FrameFolder
from keras_vjepa.data.reading.locating import name_of
from keras_vjepa.data.reading.media import Media
from keras_vjepa.data.reading.video import way_of_reading
from keras_vjepa.data.sources.list_writing import why_not_listed, write_list
from keras_vjepa.data.sources.samples import Sample

RESULTS, CLEAN, REASONS, VIDEOS = "results.jsonl", "clean.csv", "reasons.csv", "videos.csv"
# Kinds of problems with which a file can still be read, so that it may be kept.
READABLE: tuple[Problem, ...] = ("truncated", "damaged", "duplicate")

# Version of the layout of results. Results of other versions are not used.
_VERSION = 1
# A file is read in many steps, each within the time limit. After this many limits it is given up.
_STEPS = 60
_COLUMNS = [
    *("path", "codec", "width", "height", "fps", "seconds", "num_frames", "keyframe_distance"),
    *("has_variable_rate", "num_bytes"),
]


@dataclass(frozen=True)
class CheckedVideos:
    """Says which samples of a data set can be used.

    Attributes:
        usable: the samples without a problem, in their order.
        reports: each sample with its report, in the same order.
        known: number of files that were checked before.
    """

    usable: list[Sample]
    reports: list[tuple[Sample, VideoReport]]
    known: int

    @property
    def problems(self) -> Counter[str]:
        """Return the number of samples that are left out, by the kind of their problem."""
        return Counter(r.problem for _, r in self.reports if r.problem)


def check_videos(
    samples: Sequence[Sample],
    folder: Path,
    inspection: Inspection,
    num_processes: int = 1,
    min_frames: int = 1,
    keep: Collection[str] = (),
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> CheckedVideos:
    """Check the files of samples, and write a list of the usable ones and a table of the others.

    `folder` gets `clean.csv`, `reasons.csv`, `videos.csv` with what is in each file, and
    `results.jsonl`, from which a check that was stopped continues.

    Args:
        samples: what to check.
        folder: folder for the results, made if need be.
        inspection: how to look at a file.
        num_processes: number of files that are checked at a time.
        min_frames: leave out videos with fewer frames.
        keep: kinds of problems, of `READABLE`, with which files are used all the same.
        progress: called with the number of files that are done, and of all files.

    Returns:
        What was found.

    Raises:
        ValueError: if an argument is out of its range.
        OSError: if a result cannot be written.
    """
    check_whole(1, num_processes=num_processes, min_frames=min_frames)
    for kind in keep:
        check_choice(READABLE, keep=kind)
    settings = {
        "version": _VERSION,
        "way": way_of_reading(inspection.limits),
        "decodes_all": inspection.decodes_all,
    }
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / RESULTS, settings)
    sources = {sample.path: sample.source for sample in samples}
    kept = {p: VideoReport(**found) for p, s in sources.items() if (found := journal.get(s))}
    # Files that crashed a process are tried again, because the cause may have been a lack of
    # memory.
    known = {path: report for path, report in kept.items() if report.problem != "crash"}
    ahead = [source for path, source in sources.items() if path not in known]
    new = _inspected(ahead, journal, inspection, num_processes, lambda n: progress(n, len(ahead)))
    for sample in samples:
        # The rate of a folder of frames is an argument, which may have changed since.
        if isinstance(sample.media, FrameFolder) and sample.path in known:
            fps, report = sample.media.fps, known[sample.path]
            known[sample.path] = replace(report, fps=fps, seconds=round(report.num_frames / fps, 3))
    reports = _judged(samples, known | new, min_frames, keep)
    usable = [sample for sample, report in reports if not report.problem]
    _write(folder, usable, reports)
    return CheckedVideos(usable, reports, len(known))


def _inspected(
    sources: Sequence[str | Media],
    journal: Journal,
    inspection: Inspection,
    num_processes: int,
    progress: Callable[[int], None],
) -> dict[str, VideoReport]:
    """Inspect some files, and write to the journal at once what is in each."""
    found = {}
    seconds = _STEPS * inspection.limits.max_file_seconds
    work = each_with_state(inspection, sources, lambda source: source, num_processes, seconds)
    for source, state, result in work:
        path = name_of(source)
        if isinstance(result, ProcessFailure):
            result = VideoReport("crash" if result.is_crash else "unreadable", result.reason)
        journal.add(path, state, asdict(result))
        found[path] = result
        progress(len(found))
    return found


def _judged(
    samples: Sequence[Sample],
    found: dict[str, VideoReport],
    min_frames: int,
    keep: Collection[str],
) -> list[tuple[Sample, VideoReport]]:
    """List samples with what is wrong with each, by itself or beside the others."""
    first: dict[str, Sample] = {}
    reports = []
    for sample in samples:
        report = found[sample.path]
        if report.problem in keep:
            report = replace(report, problem="", reason="")
        if not report.problem and report.num_frames < min_frames:
            reason = f"it has {counted(report.num_frames, 'frame')}, fewer than {min_frames:,}"
            report = replace(report, problem="short", reason=reason)
        reason = why_not_listed(sample)
        if not report.problem and reason:
            report = replace(report, problem="unnameable", reason=reason)
        if not report.problem:
            other = first.setdefault(report.content, sample)
            if other is not sample and "duplicate" not in keep:
                reason = _same_as(sample, other)
                report = replace(report, problem="duplicate", reason=reason)
        reports.append((sample, report))
    return reports


def _same_as(sample: Sample, other: Sample) -> str:
    is_again = os.path.abspath(sample.path) == os.path.abspath(other.path)
    same = "it is listed before" if is_again else f"the same content as {printable(other.path)}"
    if sample.label != other.label:
        return f"{same}, with the label {other.label} in place of {sample.label}"
    return same


def _write(
    folder: Path, usable: Sequence[Sample], reports: Sequence[tuple[Sample, VideoReport]]
) -> None:
    """Write the lists and tables in place of those of an earlier check."""
    if usable:
        write_list(folder / CLEAN, usable)
    else:
        (folder / CLEAN).unlink(missing_ok=True)
    rows = [[s.path, r.problem, r.reason] for s, r in reports if r.problem]
    files.write_text(folder / REASONS, table(["path", "problem", "reason"], rows))
    facts = [[s.path, *(str(getattr(r, name)) for name in _COLUMNS[1:])] for s, r in reports]
    files.write_text(folder / VIDEOS, table(_COLUMNS, facts))
