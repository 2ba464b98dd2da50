"""Draw batches in processes that are killed at random moments, and compare what was drawn.

    python -m tests.data.batches.drawing FOLDER --kills 24 --seed 1

For videos in a folder, folders of frames and shards, processes draw their parts of each batch, with
reading threads or worker processes. Each notes the frames of every batch in a journal, and every
third step in a state, from which it goes on. All get SIGKILL at random moments, and are started
again. What stands in the journals must be, step by step, what one process draws that is never
stopped; what is drawn twice, for no state was written in between, must be the same both times. One
video of each source is damaged, so that another takes its place.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from keras_vjepa import files
from tests.data.batches.stamped_sources import (
    BATCH_SIZE,
    batches_of,
    samples_of,
    seen,
    write_sources,
)

KINDS = ("folder", "frames", "shards")
# Number of steps between two saved states.
STATE_EVERY = 3
# A step takes this long, so that a kill may come at any of many steps.
SECONDS_OF_A_STEP = 0.002

# The program does without a backend, which takes seconds to load.
_DRAW = """
import sys
sys.argv[0] = "keras-vjepa"
from tests.data.batches import drawing
drawing.draw(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
"""


def damage(root: Path) -> None:
    """Make one video of each source unreadable."""
    (root / "folder" / "05.avi").write_bytes(b"RIFF" + bytes(200))
    for frame in (root / "frames" / "v05").iterdir():
        frame.write_bytes(b"no picture")
    with open(root / "0.tar", "r+b") as shard:
        shard.seek(512)
        shard.write(bytes(512))


def draw(root: str, kind: str, index: int, count: int, stop: int, in_processes: int) -> None:
    """Draw the part of one of `count` processes of each batch, from its state on."""
    journal, state = _journal(Path(root), kind, index), Path(root, f"{kind}-{index}.txt")
    start = int(state.read_text()) if state.exists() else 0
    options = {"num_workers": 3, "max_bad_share": 0.1, "use_multiprocessing": bool(in_processes)}
    options |= {"process_index": index, "process_count": count}
    batches = batches_of(samples_of(Path(root), kind), **options)
    for step, batch in enumerate(batches.stream(start, stop), start):
        files.append_line(journal, json.dumps([step, seen(batch)]))
        if step % STATE_EVERY == STATE_EVERY - 1:
            files.write_text(state, str(step + 1))
        time.sleep(SECONDS_OF_A_STEP)


def _journal(root: Path, kind: str, index: int) -> Path:
    return root / f"{kind}-{index}.jsonl"


def _start(
    root: Path, kind: str, count: int, stop: int, in_processes: bool
) -> list[subprocess.Popen[bytes]]:
    further = [str(count), str(stop), str(int(in_processes))]
    return [
        subprocess.Popen(
            [sys.executable, "-c", _DRAW, str(root), kind, str(index), *further],
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]


def kill_at_random(
    root: Path, kind: str, count: int, kills: int, rng: random.Random, in_processes: bool
) -> int:
    """Start processes and kill them, so many times each; returns a step that none has drawn."""
    journals = [_journal(root, kind, index) for index in range(count)]
    for _ in range(kills):
        sizes = [journal.stat().st_size if journal.exists() else 0 for journal in journals]
        order = list(enumerate(_start(root, kind, count, 10**6, in_processes)))
        rng.shuffle(order)
        for index, process in order:
            while not journals[index].exists() or journals[index].stat().st_size <= sizes[index]:
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 30 * SECONDS_OF_A_STEP))
            process.kill()
            process.communicate()
    return 1 + max(step for journal in journals for step, _ in _entries(journal))


def _entries(journal: Path) -> list[tuple[int, list[list[int]]]]:
    """What a journal holds; a line that was cut off is none of it."""
    found = []
    for line in journal.read_text().split("\n"):
        try:
            step, clips = json.loads(line)
        except ValueError:
            continue
        found.append((step, clips))
    return found


def check(
    root: Path, kind: str, count: int, kills: int, seed: int, in_processes: bool = False
) -> tuple[int, int]:
    """Kill `count` processes that draw from one kind of source, and compare what they drew.

    Returns:
        How many steps were drawn in all, and how many of them again after a kill.
    """
    stop = (
        kill_at_random(root, kind, count, kills, random.Random(seed), in_processes)
        + 2 * STATE_EVERY
    )
    for process in _start(root, kind, count, stop, in_processes):
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    whole = batches_of(samples_of(root, kind), max_bad_share=0.1)
    expected = [seen(whole.batch(step)) for step in range(stop)]
    assert len(whole.bad_files) == 1, "the damaged video was not met"
    again = 0
    for index in range(count):
        part = slice(index * BATCH_SIZE // count, (index + 1) * BATCH_SIZE // count)
        entries = _entries(_journal(root, kind, index))
        for step, clips in entries:
            assert clips == expected[step][part], f"{kind}, process {index}, step {step}"
        assert {step for step, _ in entries} == set(range(stop)), f"{kind}, process {index}"
        again += len(entries) - stop
    return count * stop, again


def main() -> None:
    """Check all kinds of sources."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the videos, new")
    parser.add_argument("--kills", type=int, default=24, help="of each process, for each source")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2, 4))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--use-multiprocessing", action="store_true", help="read in processes")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    write_sources(options.folder)
    damage(options.folder)
    for kind in KINDS:
        start = time.perf_counter()
        count = options.processes
        steps, again = check(
            options.folder, kind, count, options.kills, options.seed, options.use_multiprocessing
        )
        seconds = time.perf_counter() - start
        print(
            f"{kind}: {options.kills * count} kills, {steps:,} steps, {again:,} of them "
            f"drawn again, all as if never stopped ({seconds:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
