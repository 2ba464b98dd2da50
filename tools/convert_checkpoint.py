"""Convert checkpoints from elsewhere into a preset folder (App. C, App. D.1).

    keras-vjepa convert vitl16.pth.tar presets/vitl16
    keras-vjepa convert vitl16.pth.tar presets/vitl16_k400 --probe k400-probe.pth.tar
    keras-vjepa convert vitg-384.pt presets/vitg_384 --image-size 384
    keras-vjepa convert vjepa2-vitl-fpc64-256/ presets/vitl_256

The first writes the pretrainer of a pretraining checkpoint in the authors' layout; the second a
classifier: the target encoder of that checkpoint, with the probe of a probe checkpoint. The third
is a V-JEPA 2 file, the fourth a folder of the transformers package. `keras_vjepa.conversion` does
the work, and says what is checked.
"""

import sys
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import MOST_LONG, MOST_SIDE, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.conversion import CheckpointError, convert
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.training.resumable import check_folder

# Options that only files in the authors' layout need.
OF_FILES = ("probe", "predictor_num_heads", "probe_num_heads")


def _check(checkpoint: str, preset: str, given: dict[str, Any]) -> None:
    """Check the options before anything is read; raise `ValueError` or `OSError`."""
    check_folder(preset, "preset")
    for name in given.keys() & {"num_heads", "predictor_num_heads", "probe_num_heads"}:
        check_whole(1, MOST_LONG, **{name: given[name]})
    for name in given.keys() & {"image_size", "num_frames"}:
        check_whole(1, MOST_SIDE if name == "image_size" else MOST_LONG, **{name: given[name]})
    if not Path(checkpoint).exists():
        raise FileNotFoundError(f"checkpoint must be a file or folder. Received: {checkpoint}")
    for name in OF_FILES:
        if name in given and Path(checkpoint).is_dir():
            raise ValueError(f"`{name}` must be left out for a folder. Received: {given[name]}")
    if "probe_num_heads" in given and "probe" not in given:
        raise ValueError("`probe_num_heads` must be left out without `probe`.")


def main(arguments: list[str] | None = None, program: str = "convert_checkpoint.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="file, e.g. vitl16.pth.tar, or transformers folder")
    parser.add_argument("preset", help="folder to write")
    parser.add_argument(
        "--num-heads",
        type=int,
        help="of the encoder, if its width is no usual size (default: by the width)",
    )
    parser.add_argument(
        "--predictor-num-heads", type=int, help="(default: the encoder's; V-JEPA 2: 12)"
    )
    parser.add_argument("--probe", help="probe checkpoint; the preset is then a classifier")
    parser.add_argument(
        "--probe-num-heads", type=int, help="(default: the encoder's; V-JEPA 2: 16)"
    )
    parser.add_argument("--image-size", type=int, help="of a V-JEPA 2 file (default: 256)")
    parser.add_argument("--num-frames", type=int, help="of a V-JEPA 2 file (default: 64)")
    options = vars(parser.parse_all(arguments))
    checkpoint, preset = options.pop("checkpoint"), options.pop("preset")
    given = {name: value for name, value in options.items() if value is not None}
    with parser.refusing():
        _check(checkpoint, preset, given)
    try:
        model = convert(checkpoint, **given)
        model.save_to_preset(preset)
    except (CheckpointError, OSError) as error:
        sys.exit(f"{program}: {parser.explain(error)}")
    print(f"Wrote {printable(preset)}: {model.count_params():,} parameters.")


if __name__ == "__main__":
    main()
