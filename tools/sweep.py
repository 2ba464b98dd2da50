"""Try pretraining settings on the built-in set one by one, and rank them (§5).

    KERAS_BACKEND=jax python tools/sweep.py workdir/sweep --steps 500 \
        --vary learning_rate 3e-4 1e-3 --vary start_momentum 0.99 0.999 --seeds 0 1 2

Every combination is a run of `recipes/pretrain.py` in a folder of its own. A folder with a result
is not run again. Therefore the same command continues after an interruption, and a command with
more values adds to the results. At the end it writes `table.md`, with the mean and standard
deviation over the seeds. The table is sorted by the sum of the gains in motion and digit over the
untrained encoder, and names the reasons of runs that failed. With `--jobs 2`, two runs at a time
run side by side, each on half of the cores.
"""

import itertools
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from keras_vjepa import files
from keras_vjepa.arguments import MOST_SEED, check_whole, counted
from keras_vjepa.command_line import WRONG_USAGE, OneLineParser, read_folder, refusing
from keras_vjepa.locks import locked
from keras_vjepa.recipes import pretrain
from keras_vjepa.recipes.pretrain_configs import CONFIGS
from keras_vjepa.recipes.pretrain_derived import check_files
from keras_vjepa.tools.child_runs import RECIPE, ChildRun, check_jobs, render_sets, run_side_by_side
from keras_vjepa.training.results import read_result
from keras_vjepa.training.signals import EXIT_STOPPED, stop_signals

TASKS = ("motion", "digit")
PRETRAINED, UNTRAINED = "pretrained target encoder", "untrained encoder"

Point = tuple[tuple[str, str], ...]


def points(vary: Sequence[Sequence[str]]) -> list[Point]:
    """List all combinations of the values of the varied fields."""
    fields = [[(field, value) for value in values] for field, *values in vary]
    return [tuple(combination) for combination in itertools.product(*fields)]


def options_of(point: Point) -> list[str]:
    """Write a combination as options of the recipe's command line."""
    return [text for field, value in point for text in (f"--{field}", value)]


def name_of(point: Point) -> str:
    """Make a readable folder name for a combination."""
    return " ".join(f"{field}={value}" for field, value in point) or "as it is"


def run_point(folder: Path, point: Point, seed: int, common: Sequence[str]) -> None:
    """Run the recipe once, unless a result or the reason of a failure is there already."""
    if _is_done(folder):
        return
    # The files of an interrupted run are no result.
    shutil.rmtree(folder, ignore_errors=True)
    command = _command(folder, point, seed, common)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    _keep_failure(folder, done.returncode, reason)


def _is_done(folder: Path) -> bool:
    """Tell whether a run has a result, or the reason of a failure."""
    return bool(result_of(folder)) or (folder / "failure.txt").exists()


def _command(folder: Path, point: Point, seed: int, common: Sequence[str]) -> list[str]:
    """Return the command of a run."""
    command = [sys.executable, *RECIPE, *common, *options_of(point)]
    return [*command, "--seed", str(seed), "--workdir", str(folder)]


def _keep_failure(folder: Path, code: int, reason: str) -> None:
    """Write the reason of a failure, if a run has failed; end the sweep if all would."""
    # With wrong options, every run of the sweep would fail, so that the sweep ends.
    if code == WRONG_USAGE:
        sys.exit(reason)
    if code == EXIT_STOPPED:
        # The same command begins this run anew.
        print(f"{folder}: {reason}", file=sys.stderr, flush=True)
    elif code:
        files.write_text(folder / "failure.txt", reason)


def _exit_if_all_failed(
    workdir: Path, combinations: Sequence[Point], seeds: Sequence[int], program: str
) -> None:
    """End the sweep with an exit code that says so, if all of its runs have failed."""
    folders = [workdir / name_of(point) / str(seed) for point in combinations for seed in seeds]
    reasons = [folder / "failure.txt" for folder in folders]
    if not all(reason.exists() for reason in reasons):
        return
    # Side by side, all that a run says is kept in its log; else its last line alone.
    logs = [ChildRun("", (), folder).log for folder in folders]
    kept, word = (logs, "logs") if any(log.exists() for log in logs) else (reasons, "reasons")
    others = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
    sys.exit(
        f"{program}: all {counted(len(folders), 'run')} failed; their {word} are in {kept[0]}"
        f"{others}. Delete {reasons[0].name} of a run to begin it anew."
    )


def result_of(folder: Path) -> dict[str, float] | None:
    """Read accuracies, gains over the untrained encoder and rank of a run that succeeded."""
    probe = read_result(folder / "probe.json")
    if probe is None:
        return None
    try:
        result = {"rank": probe[PRETRAINED]["effective_rank"]}
        for task in TASKS:
            result[task] = probe[PRETRAINED][f"{task}_accuracy"]
            result[f"{task} gain"] = result[task] - probe[UNTRAINED][f"{task}_accuracy"]
    except (KeyError, TypeError):  # the file belongs to another program, or is damaged
        return None
    return result


def table(workdir: Path, combinations: Sequence[Point], seeds: Sequence[int]) -> str:
    """Write a markdown table of all combinations, the best one first."""
    columns = [column for task in TASKS for column in (task, f"{task} gain")] + ["rank"]
    rows = []
    for point in combinations:
        folders = [workdir / name_of(point) / str(seed) for seed in seeds]
        results = [result for folder in folders if (result := result_of(folder))]
        reasons = {f.read_text() for folder in folders if (f := folder / "failure.txt").exists()}
        total = sum(r[f"{task} gain"] for r in results for task in TASKS) / max(1, len(results))
        cells = [_mean_and_deviation([r[column] for r in results]) for column in columns]
        note = f"{len(results)}" + "".join(f"; {reason}" for reason in sorted(reasons))
        rows.append((total if results else float("-inf"), [name_of(point), *cells, note]))
    rows.sort(key=lambda row: -row[0])
    header = ["settings", *columns, "seeds"]
    lines = [header, ["---"] * len(header), *(cells for _, cells in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _mean_and_deviation(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def main(arguments: list[str] | None = None, program: str = "sweep.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(
        prog=program,
        description=(__doc__ or "").splitlines()[0],
        epilog="All other options are those of pretrain, for example --config or --steps.",
    )
    parser.add_argument("workdir", type=read_folder, help="folder of the runs and of table.md")
    parser.add_argument(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar=("OPTION", "VALUE"),
        help="an option of pretrain without its dashes, and values to try; may be repeated",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="of the runs of each combination"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="how many runs run side by side, each on its share of the cores",
    )
    parsed, common = parser.parse_known_args(arguments)
    for field, *values in parsed.vary:
        if not values:
            parser.error(f"--vary {field} must be followed by at least one value")
    combinations = points(parsed.vary)
    with parser.refusing():
        for seed in parsed.seeds:
            check_whole(0, MOST_SEED, seeds=seed)
        if len({*parsed.seeds}) < len(parsed.seeds):
            # Counted twice, a result would seem surer than it is.
            given = " ".join(map(str, parsed.seeds))
            raise ValueError(f"`seeds` must differ. Received: {given}")
        check_jobs(parsed.jobs)
    data = set[str]()
    for point in combinations:
        config, _ = pretrain.parse_arguments([*common, *options_of(point)], program)
        with refusing(program, CONFIGS):
            check_files(config, parsed.workdir)
        data.add(config.data)
    try:
        parsed.workdir.mkdir(parents=True, exist_ok=True)
        with locked(parsed.workdir, "workdir"):
            seeds, jobs = parsed.seeds, parsed.jobs
            render_sets(data if jobs > 1 else ())
            print(run_all(parsed.workdir, combinations, seeds, common, jobs), end="", flush=True)
            _exit_if_all_failed(parsed.workdir, combinations, seeds, program)
    except OSError as error:
        sys.exit(f"{program}: {error}")


def run_all(
    workdir: Path,
    combinations: Sequence[Point],
    seeds: Sequence[int],
    common: Sequence[str],
    jobs: int = 1,
) -> str:
    """Run all combinations with all seeds; write and return the table of the results."""

    def write_table() -> str:
        text = table(workdir, combinations, seeds)
        files.write_text(workdir / "table.md", text)
        return text

    text = ""
    runs = [(point, seed) for point in combinations for seed in seeds]
    if jobs > 1:
        _run_side_by_side(workdir, runs, common, jobs, write_table)
        return write_table()
    # A signal to this process alone ends the run too, which would go on by itself.
    with stop_signals("Repeat the command to continue."):
        for i, (point, seed) in enumerate(runs, start=1):
            print(f"{i}/{len(runs)}: {name_of(point)}, seed {seed}", file=sys.stderr, flush=True)
            run_point(workdir / name_of(point) / str(seed), point, seed, common)
            text = write_table()
    return text


def _run_side_by_side(
    workdir: Path,
    runs: Sequence[tuple[Point, int]],
    common: Sequence[str],
    jobs: int,
    write_table: Callable[[], str],
) -> None:
    """Do the runs that are not done, some at a time, and write the table after each."""
    children: dict[Path, ChildRun] = {}
    for point, seed in runs:
        folder = workdir / name_of(point) / str(seed)
        if not _is_done(folder):
            shutil.rmtree(folder, ignore_errors=True)
            command = tuple(_command(folder, point, seed, common))
            children[folder] = ChildRun(f"{name_of(point)}, seed {seed}", command, folder)

    def ended(run: ChildRun, code: int, reason: str) -> None:
        _keep_failure(run.folder, code, reason)
        write_table()

    if children:
        run_side_by_side([*children.values()], jobs, ended)


if __name__ == "__main__":
    main()
