"""Check the authors' files, and report their contents (App. C, App. D.1).

    keras-vjepa verify > report.md
    keras-vjepa verify vjepa2_large_patch16_256
    keras-vjepa verify Downloads/vitl16.pth.tar

The first command downloads every file of the zoo, one after the other. The report is meant to be
pasted into an issue; the exit code is 1 if it says that anything is wrong.
`keras_vjepa.verification` does the work.
"""

import os
import platform
import sys
from pathlib import Path

import keras
import numpy as np

import keras_vjepa
from keras_vjepa.backend import engine
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.configuration import nearest
from keras_vjepa.verification import CLIP, FileReport, verifiable, verify


def head() -> list[str]:
    """Write the head of the report: versions, platform and the clip that is used."""
    made_with = [
        f"keras_vjepa {keras_vjepa.__version__}",
        f"keras {keras.__version__}",
        engine.name_and_version(),
        f"NumPy {np.__version__}",
        f"Python {platform.python_version()}",
        platform.platform(),
        f"{os.cpu_count()} cores",
    ]
    return ["## keras-vjepa verify", "", ", ".join(made_with), "", f"Clip: {CLIP}.", ""]


def check_names(names: list[str]) -> None:
    """Check that each name is one of the zoo or a file; raise `ValueError` if not."""
    known = verifiable()
    for name in names:
        if name in keras_vjepa.list_presets() and name not in known:
            raise ValueError(
                "`names` must be weights that are downloaded; this one lies in the package. "
                f"Received: {name}"
            )
        if name not in known and not Path(name).expanduser().is_file():
            raise ValueError(
                "`names` must be names of V-JEPA's zoo or files. "
                f"Received: {name}{nearest(name, known)}"
            )


def main(arguments: list[str] | None = None, program: str = "verify_weights.py") -> int:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="of V-JEPA's zoo, or the path of a file; if none is given, all of that zoo, which is "
        "more than 100 GB, one after the other",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave what was downloaded in the cache"
    )
    options = parser.parse_all(arguments)
    with parser.refusing():
        check_names(options.names)
    print("\n".join(head()), flush=True)
    reports: list[FileReport] = []
    for name in options.names or verifiable():
        reports.append(verify(name, options.keep))
        print("\n".join(reports[-1].lines()), flush=True)
    failed = [report.name for report in reports if not report.passed]
    print(
        f"{len(reports) - len(failed)} passed, {len(failed)} failed"
        + "".join(f"{', ' if i else ': '}{name}" for i, name in enumerate(failed))
        + "."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
