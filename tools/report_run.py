"""Write one page of a run: curves, masks, probes, what the monitor said (App. C).

    keras-vjepa report workdir/digit_motion
    keras-vjepa report workdir/digit_motion --output page.html

The page is one file and needs no network. A run that still goes on can be looked at as well.
"""

import sys
from pathlib import Path

from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.monitoring.report import write_report


def main(arguments: list[str] | None = None, program: str = "report_run.py") -> None:
    """Run the command; `program` stands in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--output", type=Path, help="the page to write [RUN/report.html]")
    options = parser.parse_all(arguments)
    try:
        path = write_report(options.run, options.output)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    print(f"Wrote {printable(path)}.")


if __name__ == "__main__":
    main()
