"""Make every gesture with every model in every precision, and draw the table.

python -m tests.gestures --backend torch --results FILE [--only WORD ...] [--report]

The file gets a line of JSON for each cell, and a run that was stopped goes on after the last one.
"""

import argparse
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.gestures", description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("jax", "tensorflow", "torch"), default="torch")
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines")
    parser.add_argument("--only", nargs="*", default=(), help="words in the names of cells")
    parser.add_argument(
        "--report", action="store_true", help="draw what the file holds, run nothing"
    )
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = options.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # These imports import Keras.
    from tests.gestures.report import report
    from tests.gestures.table import read_results, run

    if not options.report:
        run(options.results, options.only)
    print(report(read_results(options.results)))


if __name__ == "__main__":
    main()
