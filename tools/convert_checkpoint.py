"""Convert checkpoints in the authors' layout into a preset folder (App. C, App. D.1).

    python tools/convert_checkpoint.py vitl16.pth.tar presets/vitl16
    python tools/convert_checkpoint.py vitl16.pth.tar presets/vitl16_k400 --probe k400-probe.pth.tar

The first writes the pretrainer of a pretraining checkpoint; the second a classifier: the target
encoder of that checkpoint, with the probe of a probe checkpoint. `keras_vjepa.checkpoints` does the
work, and says what is checked.
"""

import argparse
import sys

from keras_vjepa.checkpoints import CheckpointError, convert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="file in the authors' layout, e.g. vitl16.pth.tar")
    parser.add_argument("preset", help="folder to write")
    parser.add_argument("--num-heads", type=int, help="if the encoder's width is no usual size")
    parser.add_argument("--predictor-num-heads", type=int, help="default: the encoder's")
    parser.add_argument("--probe", help="probe checkpoint; the preset is then a classifier")
    parser.add_argument("--probe-num-heads", type=int, help="default: the encoder's")
    arguments = parser.parse_args()
    try:
        model = convert(
            arguments.checkpoint,
            arguments.probe,
            arguments.num_heads,
            arguments.predictor_num_heads,
            arguments.probe_num_heads,
        )
        model.save_to_preset(arguments.preset)
    except (CheckpointError, OSError) as error:
        sys.exit(f"convert_checkpoint: {error}")
    print(f"Wrote {arguments.preset}: {model.count_params():,} parameters.")


if __name__ == "__main__":
    main()
