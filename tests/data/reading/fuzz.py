"""Read thousands of damaged files in processes of their own, and say what became of them.

    python -m tests.data.reading.fuzz --videos 2200 --images 1100 --seed 11 --results fuzz.jsonl
    python -m tests.data.reading.fuzz --videos 2200 --images 0 --seed 11 --without-av ...

Each file of `mutants.py` is read in the ways in which runs read it: whole, single frames, in a
batch of pretraining, and in windows; and each hundred of them as a folder, by the command that
extracts features. Nothing may come of it but frames or the one error that names the file. A process
that dies or hangs is told apart by what was being read, and the rest is read by another.

Prints a table, and exits with 1 if something else happened. With `--results` the same command goes
on after an interruption; `--keep FOLDER` keeps the files that did something else.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.data.reading.mutants import damaged, frames, sound_images, sound_videos
from tests.data.reading.stamped import stamps
from tests.watched import ROOT, WatchedProcess, answer, environment_with, num_open_files

WITHOUT_AV = ROOT / "tests" / "without_av"
# A file that keeps its process busy for longer counts as a hang. The reader's own limit is lower.
HANG_SECONDS = 90.0
READER_SECONDS = 20.0
# The limit of memory, which is more than any of these small files may need.
MOST_MIB = 2048
FOLDER_SIZE = 100

# ----------------------------------------------------------------- the process that reads the files


def read_in_all_ways(path: str, sound: str) -> str:
    """Read a file as runs do. Returns "frames" or "named", and what is wrong otherwise.

    Args:
        path: the file.
        sound: a sound one, which stands beside it in a batch.
    """
    from keras_vjepa import VJEPAVideoPreprocessor
    from keras_vjepa.data import ClipBatches, ReadingLimits, Sample
    from keras_vjepa.data.reading.errors import UnreadableVideoError
    from keras_vjepa.data.reading.locating import is_image

    limits = ReadingLimits(max_file_seconds=READER_SECONDS)
    shapes = {"video_shape": (8, 64, 64, 3), "grid_shape": (4, 4, 4)}
    samples = [Sample(path), Sample(sound)]
    preprocessor = VJEPAVideoPreprocessor(32, num_frames=4, frame_step=2)
    try:
        batches = ClipBatches(samples, 2, max_bad_share=1.0, limits=limits, **shapes)
        if not np.isfinite(batches.batch(0)["videos"]).all() or sound in batches.bad_files:
            return "a spoilt batch"
        if any("\n" in reason for reason in batches.bad_files.values()):
            return "named in several lines"
        if not is_image(path):
            wrong = _frames_that_differ_alone(path, limits)
            if wrong:
                return wrong
        for _ in preprocessor.windows(path, limits=limits)[1]:
            pass
    except UnreadableVideoError as error:
        return "named" if "\n" not in str(error) else "named in several lines"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    return "frames"


def _frames_that_differ_alone(path: str, limits: Any) -> str:
    """Which frames show another number when they are read alone; damage may hide a number."""
    from keras_vjepa.data.reading.video import open_video

    with open_video(path, limits=limits) as video:
        count = min(video.num_frames, 64)
        in_row = video.read(range(count))
    found = []
    for position in sorted({count - 1, count // 2, count // 3}):
        with open_video(path, limits=limits) as video:
            alone = video.read([position])
        first, second = _clear_stamp(alone[0]), _clear_stamp(in_row[position])
        if None not in (first, second) and first != second:
            found.append(f"{position} shows {first}, in a row {second}")
    return f"another frame alone: {found}" if found else ""


def _clear_stamp(frame: np.ndarray) -> int | None:
    """The number that a frame shows, if it is one of the sound file's and no block is in doubt."""
    if frame.shape[:2] != (64, 96):
        return None
    blocks = [float(frame[12:36, 10 + 8 * bit : 14 + 8 * bit].mean()) for bit in range(10)]
    is_clear = all(abs(block - 40) < 30 or block > 225 for block in blocks)
    (number,) = stamps(frame[np.newaxis])
    return number if is_clear and number < len(frames()) else None


def read_for_another_process() -> None:
    """Read the files whose paths come in, and say after each what became of it."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in sound_videos(["mjpg.avi"]).items():
            Path(folder, name).write_bytes(content)
        sound = str(Path(folder, "mjpg.avi"))
        answer(lambda path: read_in_all_ways(path, sound), num_open_files)


# ------------------------------------------------------------------------- the process that watches


def environment(without_av: bool) -> dict[str, str]:
    return environment_with(WITHOUT_AV) if without_av else environment_with()


def extract(folder: Path, without_av: bool) -> str:
    """Extract the features of a folder by the command, and say what became of it."""
    from keras_vjepa.data.sources.folders import search_folder

    source, output = folder / "source", folder / "features"
    command = [sys.executable, "-m", "keras_vjepa", "features", "--preset", str(folder / "preset")]
    command += [str(source), "--output", str(output), "--max-file-seconds", str(READER_SECONDS)]
    done = subprocess.run(
        command, env=environment(without_av), capture_output=True, text=True, timeout=3000
    )
    if done.returncode not in (0, 1):
        return f"extraction ends with {done.returncode}: {done.stderr.splitlines()[-1:]}"
    written = {path.stem for path in output.rglob("*.npy")}
    expected = {Path(path).name for path in search_folder(source, "any").paths}
    lost = [name for name in expected - written if f"{source}/{name}: " not in done.stderr]
    return f"neither features nor a reason: {lost}" if lost else "extracted"


def make_preset(folder: Path) -> None:
    """Write the smallest model that the command takes, once for all folders."""
    from keras_vjepa import VJEPABackbone

    VJEPABackbone(16, 2, hidden_dim=8, num_layers=1, num_heads=1).save_to_preset(folder)


def fuzz(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Read the files that have no result yet; yields results."""
    done = {line["name"] for line in results_in(options.results)}
    jobs = [*damaged(sound_videos(), options.videos, options.seed)]
    jobs += damaged(sound_images(), options.images, options.seed)
    command = ["-m", "tests.data.reading.fuzz", "--read"]
    reader = WatchedProcess(
        command, environment(options.without_av), HANG_SECONDS, MOST_MIB, further=["files"]
    )
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        make_preset(folder / "preset")
        (folder / "source").mkdir()
        for start in range(0, len(jobs), FOLDER_SIZE):
            part = jobs[start : start + FOLDER_SIZE]
            for name, content in part:
                path = folder / "source" / name
                path.write_bytes(content)
                if name not in done:
                    result = {"name": name, **reader.ask(str(path))}
                    yield result
                    if options.keep and not is_wanted(result["outcome"]):
                        options.keep.mkdir(parents=True, exist_ok=True)
                        (options.keep / f"{options.seed}_{name}").write_bytes(content)
            if f"folder {start}" not in done:
                yield {"name": f"folder {start}", "outcome": extract(folder, options.without_av)}
            for path in [*folder.glob("source/*"), *folder.glob("features/*")]:
                path.unlink()
    reader.close()


def is_wanted(outcome: str) -> bool:
    return outcome in ("frames", "named", "extracted")


def results_in(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(results: list[dict[str, Any]]) -> Iterator[str]:
    """A table of outcomes by kind of file, the extremes, and what should not have been."""
    outcomes = collections.Counter((r["name"][6:], r["outcome"][:40]) for r in results)
    for (name, outcome), count in sorted(outcomes.items()):
        if not name.startswith(" "):
            yield f"{name:24} {outcome:40} {count}"
    totals = collections.Counter(r["outcome"].split(":")[0] for r in results)
    yield f"in all: {dict(totals)}"
    files = [r for r in results if "seconds" in r]
    for what in ("seconds", "mib", "files"):
        most = max(files, key=lambda r: float(r[what]))
        yield f"most {what}: {most[what]} ({most['name']})"
    yield from (f"{r['name']}: {r['outcome']}" for r in results if not is_wanted(r["outcome"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", type=int, default=2200)
    parser.add_argument("--images", type=int, default=1100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-av", action="store_true", help="read as if there was no PyAV")
    parser.add_argument("--results", type=Path, help="file of results, added to")
    parser.add_argument("--keep", type=Path, help="folder for files that did something else")
    parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        read_for_another_process()
        return
    results = results_in(options.results)
    for result in fuzz(options):
        results.append(result)
        if options.results:
            with open(options.results, "a") as file:
                file.write(json.dumps(result) + "\n")
    print("\n".join(report(results)))
    sys.exit(not all(is_wanted(result["outcome"]) for result in results))


if __name__ == "__main__":
    main()
