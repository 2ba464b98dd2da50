"""The command that draws masks."""

import cv2
import pytest

from keras_vjepa.tools import show_masks

pytestmark = pytest.mark.data


def test_a_picture(tmp_path):
    output = tmp_path / "masks.png"
    arguments = ["--mask", "short", "long", "tube", "causal", "--batch-size", "2"]
    assert show_masks.main(["--output", str(output), *arguments]) == 0
    assert cv2.imread(str(output)).shape == (2 * 60, 4 * 8 * 60 + 3 * 24, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output", "masks.png", "--resolution", "225"],
        ["--output", "masks.txt"],
        ["--output", "no/such/folder/masks.png"],
        ["--output", "masks.png", "--batch-size", "0"],
        ["--output", "masks.png", "--mask", "square"],
        ["--ouput", "masks.png"],
    ],
)
def test_bad_input_is_answered_in_one_line(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        show_masks.main(arguments)
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("show_masks.py: ")
    if arguments[0] == "--ouput":
        assert line.endswith("unknown option --ouput; did you mean --output?")
    assert not list(tmp_path.iterdir())
