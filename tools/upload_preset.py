"""Upload a preset to Hugging Face or Kaggle, with a page that describes it (App. C).

    keras-vjepa upload mine hf://user/repo --licence "CC BY-NC 4.0"
    keras-vjepa upload mine kaggle://user/model/framework/variation

`keras_vjepa.upload_preset` does the work; its documentation says which files are sent.
"""

import sys

from keras_vjepa.command_line import OneLineParser
from keras_vjepa.presets.upload import upload_preset


def main(arguments: list[str] | None = None, program: str = "upload_preset.py") -> None:
    """Run the command, with `program` in front of its messages."""
    parser = OneLineParser(prog=program, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", help="of the preset")
    parser.add_argument("address", help="hf://user/repo or kaggle://user/model/framework/variation")
    parser.add_argument(
        "--licence", help="of the weights, as the hub calls it (default: what the preset says)"
    )
    options = parser.parse_all(arguments)
    try:
        sent = upload_preset(options.address, options.folder, options.licence)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"{program}: {parser.explain(error)}")
    print(f"Uploaded to {options.address}: {', '.join(sent)}.")


if __name__ == "__main__":
    main()
