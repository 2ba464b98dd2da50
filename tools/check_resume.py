"""Kill a run again and again, and compare it with an undisturbed one (App. C, App. D.3).

    KERAS_BACKEND=jax python tools/check_resume.py workdir/check --kills 30 --data videos/ \
        --steps 60 --checkpoint_every 3
    keras-vjepa check-resume workdir/check --recipe finetune --preset PRESET --data videos/

Options that are not this tool's go to the recipe. One run is left undisturbed. Another one gets
SIGKILL, alternately at a random moment and while it writes a checkpoint, and is started again with
the same command. When it has finished nevertheless, a new run takes its place. Every finished run
must have the losses and the last checkpoint of the undisturbed run, bit for bit; checkpoints are
compared by their names, which contain hashes of their contents. The exit code is 1 if any run
differs.
"""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras_vjepa import files
from keras_vjepa.arguments import MOST_SEED, check_whole
from keras_vjepa.command_line import OneLineParser, read_folder, refusing
from keras_vjepa.recipes import detect, detect_configs, finetune, finetune_configs, pretrain
from keras_vjepa.recipes.pretrain_configs import CONFIGS
from keras_vjepa.recipes.pretrain_derived import check_files

# Recipes that train with labels, and their configs.
LABELLED: dict[str, tuple[Any, Any]] = {
    "finetune": (finetune, finetune_configs.CONFIGS),
    "detect": (detect, detect_configs.CONFIGS),
}
RECIPES = ("pretrain", *LABELLED)
READY = " parameters, "
POLL_SECONDS = 0.0005


@dataclass
class Process:
    """Runs the recipe in a folder, and writes its messages to the file `output` beside it."""

    workdir: Path
    # The name of the recipe, followed by the recipe's options.
    options: Sequence[str]

    def __post_init__(self) -> None:
        self.checkpoints = self.workdir / "checkpoints"
        self.output = self.workdir.with_suffix(".txt")
        self.before = self.written()
        command = [sys.executable, "-m", "keras_vjepa", *self.options]
        command += ["--workdir", str(self.workdir)]
        with open(self.output, "w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def written(self) -> set[str]:
        """List the names of the finished checkpoints."""
        return {path.name for path in self.checkpoints.glob("step-*.npz")}

    def is_writing(self) -> bool:
        """Tell whether a checkpoint is being written, or was when the process died."""
        return bool(files.unfinished_in(self.checkpoints))

    def wait_for(self, event: Callable[[], bool]) -> bool:
        """Wait until something happens; return False if the process ended before."""
        while not event():
            if self.process.poll() is not None:
                self.check()
                return False
            time.sleep(POLL_SECONDS)
        return True

    def wait_until_ready(self) -> bool:
        """Wait until training is about to begin; return False if the process ended before."""
        return self.wait_for(lambda: READY in self.output.read_text())

    def wait_for_checkpoints(self, count: int) -> bool:
        """Wait for a number of new checkpoints; return False if the process ended before."""
        seen: set[str] = set()

        def enough() -> bool:
            seen.update(self.written() - self.before)
            return len(seen) >= count

        return self.wait_for(enough)

    def check(self) -> None:
        """Wait for the process to end, and end the tool if it failed."""
        if self.process.wait():
            sys.exit(f"check_resume: the recipe failed.\n{self.output.read_text()}")

    def kill(self) -> bool:
        """Kill the process by SIGKILL; return whether it was still running."""
        if self.process.poll() is not None:
            self.check()
            return False
        self.process.kill()
        self.process.wait()
        return True


def result_of(workdir: Path) -> tuple[list[str], str]:
    """Read the lines of loss.csv, and the name of the last checkpoint."""
    last = max(path.name for path in (workdir / "checkpoints").glob("step-*.npz"))
    return (workdir / "loss.csv").read_text().splitlines(), last


def reference_run(workdir: Path, options: Sequence[str]) -> tuple[float, float]:
    """Run undisturbed; return the seconds to the first checkpoint, and those between two."""
    process = Process(workdir, options)
    if not process.wait_until_ready():
        sys.exit(f"check_resume: the recipe never said {READY!r}.\n{process.output.read_text()}")
    ready = time.monotonic()
    process.wait_for_checkpoints(1)
    first = time.monotonic()
    process.wait_for_checkpoints(4)
    interval = (time.monotonic() - first) / 3
    process.check()
    return first - ready, interval


def kill_once(
    process: Process, rng: random.Random, writing: bool, seconds: tuple[float, float]
) -> bool:
    """Kill at a moment that `rng` chooses; return False if the process finished before it."""
    if not process.wait_until_ready():
        return False
    count = rng.randrange(3)
    if not process.wait_for_checkpoints(count):
        return False
    if writing:
        if not process.wait_for(process.is_writing):
            return False
        time.sleep(rng.choice([0.0, 0.0005, 0.001]))
    else:
        time.sleep(rng.random() * seconds[0 if count == 0 else 1])
    return process.kill()


def check_recipe(recipe: str, options: list[str], workdir: Path, program: str) -> None:
    """Check the recipe's own options; an error ends the process."""
    if recipe in LABELLED:
        module, configs = LABELLED[recipe]
        with refusing(program, configs, options):
            module.check(module.parse_arguments(options, program)[0], workdir)
        return
    config, _ = pretrain.parse_arguments(options, program)
    with refusing(program, CONFIGS):
        check_files(config, workdir)


def main(arguments: list[str] | None = None, program: str = "check_resume.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(
        prog=program,
        description=(__doc__ or "").splitlines()[0],
        epilog="All other options are those of the recipe, for example --data or --steps.",
    )
    parser.add_argument("--recipe", choices=RECIPES, default=RECIPES[0], help="what is run")
    parser.add_argument(
        "workdir", type=read_folder, help="folder of the runs; what it holds is removed"
    )
    parser.add_argument("--kills", type=int, default=30, help="how often a run is killed")
    parser.add_argument("--kill_seed", type=int, default=0, help="of the moments of the kills")
    parsed, options = parser.parse_known_args(arguments)
    with parser.refusing():
        check_whole(0, kills=parsed.kills)
        check_whole(0, MOST_SEED, kill_seed=parsed.kill_seed)
    # All options are checked before the contents of the folder are removed.
    check_recipe(parsed.recipe, options, parsed.workdir, program)
    options = [parsed.recipe, *options]
    shutil.rmtree(parsed.workdir, ignore_errors=True)
    parsed.workdir.mkdir(parents=True)
    rng = random.Random(parsed.kill_seed)
    seconds = reference_run(parsed.workdir / "reference", options)
    expected = result_of(parsed.workdir / "reference")
    kills = in_a_write = runs = different = 0
    while True:
        killed = parsed.workdir / f"killed_{runs}"
        process = Process(killed, options)
        if kills < parsed.kills and kill_once(process, rng, kills % 2 == 1, seconds):
            kills += 1
            in_a_write += process.is_writing()
            print(f"kill {kills}: {max(process.written(), default='nothing yet')}", flush=True)
            continue
        process.check()
        runs += 1
        losses, last = result_of(killed)
        wrong = sum(a != b for a, b in zip(losses, expected[0], strict=False))
        wrong += abs(len(losses) - len(expected[0]))
        different += bool(wrong) or last != expected[1]
        print(f"{killed}: {wrong} losses differ; {last}, expected {expected[1]}", flush=True)
        if kills >= parsed.kills:
            break
    print(
        f"{kills} kills, {in_a_write} of them in a write; {runs} runs of "
        f"{len(expected[0]) - 1} steps, {different} of them different"
    )
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
