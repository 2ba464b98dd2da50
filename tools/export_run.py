"""Write a preset of any checkpoint of a run (App. C).

    keras-vjepa export-checkpoint workdir/digit_motion presets/mine
    keras-vjepa export-checkpoint workdir/digit_motion@75 presets/mine

The preset is like the one that the run itself writes at its end, but of any step; its encoder is
the target encoder. Without @STEP, it is made of the last checkpoint. Everywhere else, RUN@STEP and
RUN@last can be used as the name of a preset.
"""

import sys
from pathlib import Path

from keras_vjepa.command_line import OneLineParser
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.tasks.checkpoint_presets import model_at, run_and_step


def main(arguments: list[str] | None = None, program: str = "export_run.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=__doc__)
    parser.add_argument("run", help="folder of the run; RUN@STEP for another step than the last")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument(
        "--half-precision",
        action="store_true",
        help="round the weights to float16, for files of half the size",
    )
    options = parser.parse_all(arguments)
    try:
        model, checkpoint = model_at(*run_and_step(options.run))
        model.save_to_preset(options.output, options.half_precision)
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    print(f"Wrote {printable(options.output)}, the preset of step {checkpoint.step:,}.")


if __name__ == "__main__":
    main()
