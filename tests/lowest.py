"""Run the suite with the lowest versions that pyproject.toml admits, in an environment of its own.

python tests/lowest.py FOLDER                makes FOLDER an environment, then: tests/run.py
python tests/lowest.py FOLDER torch data     some of the steps

On demand, before a release and when a bound changes: a bound is what this was run with. torch's
wheel of that age brings CUDA, several gigabytes.
"""

import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
# TensorFlow's wheel for machines without a GPU, which has the same code.
OTHER_NAMES = {"tensorflow": "tensorflow-cpu"}
# This package installs its own TensorFlow, and the suite does not run it.
LEFT_OUT = ("keras-hub",)
# The tests need these beside the package. Newer versions of transformers need a newer
# huggingface_hub. This old TensorFlow comes with a protobuf that cannot read newer files of onnx.
FOR_TESTS = (
    *("pytest", "pillow", "setuptools>=77", "transformers==5.0.0"),
    *("onnx<1.19", "onnxruntime", "onnxscript", "tf2onnx"),
)
# The other steps check sources, which does not depend on versions.
STEPS = ("jax", "tensorflow", "torch", "data")


def lowest_versions(pyproject: Path) -> list[str]:
    """List each dependency and extra of the package as `name==lowest version`."""
    project = tomllib.loads(pyproject.read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    pins = []
    for requirement in (line for group in groups for line in group):
        found = re.fullmatch(r"([\w-]+)>=([\w.]+)(,.*)?", requirement)
        if found is None:
            sys.exit(f"lowest.py: a requirement must be name>=version. Received: {requirement}")
        name, version = found[1], found[2]
        if name not in LEFT_OUT:
            pins.append(f"{OTHER_NAMES.get(name, name)}=={version}")
    return pins


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit("lowest.py: FOLDER must be named: python tests/lowest.py FOLDER [steps]")
    folder, steps = Path(sys.argv[1]).resolve(), sys.argv[2:] or list(STEPS)
    python = folder / "bin" / "python"
    pins = lowest_versions(ROOT / "pyproject.toml")
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run(
        [python, "-m", "pip", "install", "-q", *pins, *FOR_TESTS, "-e", str(ROOT)], check=True
    )
    print("Lowest versions:", ", ".join(pins), flush=True)
    sys.exit(subprocess.run([python, ROOT / "tests" / "run.py", *steps]).returncode)


if __name__ == "__main__":
    main()
