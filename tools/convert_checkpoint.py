"""Convert checkpoints from elsewhere into a preset folder (App. C, App. D.1).

    keras-vjepa convert vitl16.pth.tar presets/vitl16
    keras-vjepa convert vitl16.pth.tar presets/vitl16_k400 --probe k400-probe.pth.tar
    keras-vjepa convert vitg-384.pt presets/vitg_384 --image-size 384
    keras-vjepa convert vjepa2_1_vitb_dist_vitG_384.pt presets/vitb_21
    keras-vjepa convert vjepa2-vitl-fpc64-256/ presets/vitl_256
    keras-vjepa convert dinov2_vitl14_pretrain.pth presets/dinov2_large
    keras-vjepa convert checkpoint.pth presets/videomae_large --family videomae

The first writes the pretrainer of a pretraining checkpoint in the authors' layout; the second a
classifier: the target encoder of that checkpoint, with the probe of a probe checkpoint. The third
is a V-JEPA 2 file, the fourth one of V-JEPA 2.1, the fifth a folder of the transformers package.
The last two are official files of encoders that V-JEPA is compared with; their family is found
where the names of the tensors tell.
`keras_vjepa.conversion` does the work, and says what is checked.
"""

import sys
from pathlib import Path
from typing import Any

from keras_vjepa.arguments import MOST_LONG, check_size, check_whole
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.conversion import FAMILIES, CheckpointError, convert
from keras_vjepa.conversion.families.official import preprocessor_of
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.layers.vision_block import ACTIVATIONS
from keras_vjepa.models.families import RivalBackbone
from keras_vjepa.training.resumable import check_folder

# Options that only files in the authors' layout need.
OF_FILES = ("probe", "predictor_num_heads", "probe_num_heads")
# What only V-JEPA's rivals have.
OF_RIVALS = ("activation", "network")


def _check(checkpoint: str, preset: str, given: dict[str, Any]) -> None:
    """Check the options before anything is read; raise `ValueError` or `OSError`."""
    check_folder(preset, "preset")
    for name in given.keys() & {"num_heads", "predictor_num_heads", "probe_num_heads"}:
        check_whole(1, MOST_LONG, **{name: given[name]})
    if "num_frames" in given:
        check_whole(1, MOST_LONG, num_frames=given["num_frames"])
    if "image_size" in given:
        check_size(image_size=given["image_size"])
    levels = given.get("level_layers", [0, 1])
    for layer in levels:
        check_whole(0, MOST_LONG, level_layers=layer)
    if len(levels) < 2 or levels != sorted({*levels}):
        raise ValueError(f"`level_layers` must be two or more that rise. Received: {levels}")
    if not Path(checkpoint).exists():
        raise FileNotFoundError(f"checkpoint must be a file or folder. Received: {checkpoint}")
    for name in OF_FILES:
        if name in given and Path(checkpoint).is_dir():
            raise ValueError(f"`{name}` must be left out for a folder. Received: {given[name]}")
    for name in (*OF_FILES, *OF_RIVALS):
        is_rival = given.get("family", "vjepa") != "vjepa"
        if name in given and is_rival == (name in OF_FILES):
            word = "without" if name in OF_RIVALS else "with"
            raise ValueError(f"`{name}` must be left out {word} a `family` of V-JEPA's rivals.")
    if "probe_num_heads" in given and "probe" not in given:
        raise ValueError("`probe_num_heads` must be left out without `probe`.")


def _add_sizes(parser: OneLineParser) -> None:
    """Add what some files do not tell."""
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        help="one side, or height and width, where the file does not tell or for another than its "
        "own (default: 224; V-JEPA 2: 256; V-JEPA 2.1: 384)",
    )
    parser.add_argument(
        "--num-frames", type=int, help="if the file does not tell (default: 16; V-JEPA 2: 64)"
    )
    parser.add_argument(
        "--level-layers",
        type=int,
        nargs="+",
        help="blocks of V-JEPA 2.1's levels, from 0 (default: known for 12, 24, 40 and 48 blocks)",
    )
    parser.add_argument(
        "--family", choices=FAMILIES, help="of the model (default: what the names in it tell)"
    )
    parser.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="with --family openclip: quick_gelu for weights of OpenAI, MetaCLIP and DFN "
        "(default: gelu)",
    )
    parser.add_argument(
        "--network",
        choices=("target_encoder", "encoder"),
        help="with --family ijepa (default: target_encoder, which is evaluated)",
    )


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
    _add_sizes(parser)
    options = vars(parser.parse_all(arguments))
    checkpoint, preset = options.pop("checkpoint"), options.pop("preset")
    given = {name: value for name, value in options.items() if value is not None}
    if "image_size" in given:
        sides = given["image_size"]
        given["image_size"] = sides[0] if len(sides) == 1 else tuple(sides)
    with parser.refusing():
        _check(checkpoint, preset, given)
    try:
        model = convert(checkpoint, **given)
        model.save_to_preset(preset)
        if isinstance(model, RivalBackbone):
            preprocessor_of(model).save_to_preset(preset)
    except (CheckpointError, OSError) as error:
        sys.exit(f"{program}: {parser.explain(error)}")
    print(f"Wrote {printable(preset)}: {model.count_params():,} parameters.")


if __name__ == "__main__":
    main()
