"""Write a page that compares runs: curves, probes, differences of their configs (App. C).

    keras-vjepa compare workdir/digit_motion workdir/other
    keras-vjepa compare workdir/* --output page.html

The page is one file and needs no network. Runs that are not finished can be compared too.
"""

from pathlib import Path

from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.monitoring.side_by_side import FILE_NAME, write_comparison
from keras_vjepa.tasks.checkpoint_presets import run_and_step


def main(arguments: list[str] | None = None, program: str = "compare_runs.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of two or more runs")
    parser.add_argument("--output", type=Path, default=FILE_NAME, help="the page to write")
    options = parser.parse_all(arguments)
    with parser.refusing():
        for given in options.runs:
            if run_and_step(str(given))[1] is not None:
                raise ValueError(f"`runs` must be folders, without @STEP. Received: {given}")
        write_comparison(options.runs, options.output)
    print(f"Wrote {printable(options.output)}.")


if __name__ == "__main__":
    main()
