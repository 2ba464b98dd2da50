"""Write a preset in the layouts of other packages, as the opposite of `convert` (App. C).

    keras-vjepa export presets/vitl16 vitl16.pth.tar
    keras-vjepa export presets/vitl16_k400 vitl16.pth.tar --probe k400-probe.pth.tar
    keras-vjepa export presets/vitl_256 vjepa2-vitl/ --layout transformers

The authors' layout has one file for encoder and predictor and one for a probe; an encoder that
V-JEPA is compared with is written as its own authors' files are. The layout of the transformers
package, which knows V-JEPA 2 and some of these, is a folder, of a V-JEPA 2 classifier too.
`keras_vjepa.conversion` does the work.
"""

import sys
from typing import Any

from keras_vjepa import (
    VJEPAPretrainer,
    VJEPAVideoClassifier,
    VJEPAVideoPreprocessor,
)
from keras_vjepa.command_line import OneLineParser
from keras_vjepa.conversion import export_checkpoint, export_hugging_face, export_probe
from keras_vjepa.data.reading.errors import printable
from keras_vjepa.models.families import RivalBackbone
from keras_vjepa.presets.preset import PREPROCESSOR_FILE, find_preset, load_backbone


def load(preset: str) -> Any:
    """Load a preset as a classifier, else as a pretrainer, else as a backbone."""
    folder = find_preset(preset)
    if (folder / VJEPAVideoClassifier.config_file).is_file():
        return VJEPAVideoClassifier.from_preset(preset)
    if (folder / VJEPAPretrainer.config_file).is_file():
        return VJEPAPretrainer.from_preset(preset)
    return load_backbone(folder)


def preprocessor_of(preset: str) -> VJEPAVideoPreprocessor | None:
    """Load the preprocessor of a preset, if it has one."""
    folder = find_preset(preset)
    holds_one = (folder / PREPROCESSOR_FILE).is_file()
    return VJEPAVideoPreprocessor.from_preset(preset) if holds_one else None


def main(arguments: list[str] | None = None, program: str = "export_checkpoint.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", help="folder or name to read")
    parser.add_argument("output", help="file to write, or folder for transformers")
    parser.add_argument(
        "--layout",
        choices=("authors", "transformers"),
        default="authors",
        help="whose files to write",
    )
    parser.add_argument("--probe", help="file to write a classifier's probe to")
    options = parser.parse_all(arguments)
    try:
        model = load(options.preset)
        if options.layout == "transformers":
            export_hugging_face(model, options.output, preprocessor_of(options.preset))
        else:
            is_classifier = isinstance(model, VJEPAVideoClassifier)
            if is_classifier and isinstance(model.backbone, RivalBackbone) and not options.probe:
                export_checkpoint(model, options.output)
                print(f"Wrote {printable(options.output)}.")
                return
            if is_classifier != (options.probe is not None):
                raise ValueError(
                    "--probe must be given for a classifier, and left out for any other model"
                )
            if is_classifier:
                # First, because it refuses heads that the layout does not have.
                export_probe(model.probe, options.probe)
            export_checkpoint(model.backbone if is_classifier else model, options.output)
    except (OSError, ValueError) as error:
        sys.exit(f"{program}: {error}")
    print(f"Wrote {printable(options.output)}.")


if __name__ == "__main__":
    main()
