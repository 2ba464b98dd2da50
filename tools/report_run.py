"""Write a page about a run: curves, masks, probes, and what the monitor said (App. C).

    keras-vjepa report workdir/digit_motion
    keras-vjepa report workdir/digit_motion@75 --output page.html

The page is one file and needs no network. The run need not be finished. With @STEP, the page shows
the run as it was after that step.
"""

import sys
from pathlib import Path

from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.monitoring.report import write_report
from keras_vjepa.tasks.checkpoint_presets import run_and_step


def main(arguments: list[str] | None = None, program: str = "report_run.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("run", help="folder of the run; RUN@STEP for what it was after a step")
    parser.add_argument("--output", type=Path, help="the page to write [RUN/report.html]")
    options = parser.parse_all(arguments)
    try:
        run, step = run_and_step(options.run)
        path = write_report(run, options.output, step)
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    print(f"Wrote {printable(path)}.")


if __name__ == "__main__":
    main()
