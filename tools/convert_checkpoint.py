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

from keras_vjepa.command_line import OneLineParser
from keras_vjepa.conversion import CheckpointError, convert


def main(arguments: list[str] | None = None, program: str = "convert_checkpoint.py") -> None:
    """Run the command; `program` stands in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", help="file, e.g. vitl16.pth.tar, or transformers folder")
    parser.add_argument("preset", help="folder to write")
    parser.add_argument("--num-heads", type=int, help="if the encoder's width is no usual size")
    parser.add_argument(
        "--predictor-num-heads", type=int, help="default: the encoder's; V-JEPA 2: 12"
    )
    parser.add_argument("--probe", help="probe checkpoint; the preset is then a classifier")
    parser.add_argument("--probe-num-heads", type=int, help="default: the encoder's; V-JEPA 2: 16")
    parser.add_argument("--image-size", type=int, help="of a V-JEPA 2 file; default: 256")
    parser.add_argument("--num-frames", type=int, help="of a V-JEPA 2 file; default: 64")
    options = vars(parser.parse_all(arguments))
    try:
        checkpoint, preset = options.pop("checkpoint"), options.pop("preset")
        given = {name: value for name, value in options.items() if value is not None}
        model = convert(checkpoint, **given)
        model.save_to_preset(preset)
    except (CheckpointError, OSError) as error:
        sys.exit(f"{program}: {error}")
    print(f"Wrote {preset}: {model.count_params():,} parameters.")


if __name__ == "__main__":
    main()
