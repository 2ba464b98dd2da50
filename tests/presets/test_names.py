"""What is said of a preset's name that is none: the nearest, no such folder, or where it lies."""

from pathlib import Path

import pytest

from keras_vjepa import VJEPABackbone, VJEPAPretrainer, VJEPAVideoClassifier
from keras_vjepa.preprocessor import VJEPAVideoPreprocessor
from keras_vjepa.presets.preset import check_preset, load_backbone

pytestmark = pytest.mark.data

LOADERS = [
    VJEPABackbone.from_preset,
    VJEPAPretrainer.from_preset,
    VJEPAVideoClassifier.from_preset,
    VJEPAVideoPreprocessor.from_preset,
    load_backbone,
    check_preset,
]


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    """A run's folder, as `keras-vjepa pretrain` leaves it; the working directory is above it."""
    for name in ("preset", "untrained"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "metadata.json").write_text("{}")
    (tmp_path / "run" / "config.json").write_text('{"steps": 3}')
    (tmp_path / "a_file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    ("preset", "error", "message"),
    [
        ("vjepa_lrge_patch16_224", ValueError, "did you mean vjepa_large_patch16_224?"),
        ("vjepa2_large_patch16_256_ssv", ValueError, "did you mean vjepa2_large_patch16_256?"),
        ("runn", ValueError, "Received: 'runn'; did you mean run?"),
        ("zzz", ValueError, "or a name of keras_vjepa.list_presets(). Received: 'zzz'"),
        ("run/presett", FileNotFoundError, "and there is no such folder; did you mean run/preset?"),
        ("./zzz", FileNotFoundError, "Received: './zzz', and there is no such folder"),
        (Path("zzz"), FileNotFoundError, "Received: 'zzz', and there is no such folder"),
        ("~/no such user's/zzz", FileNotFoundError, "and there is no such folder"),
        ("./a_file", FileNotFoundError, "Received: './a_file', which is a file"),
        ("run", FileNotFoundError, "which is none and holds run/preset, run/untrained"),
    ],
)
def test_one_line_that_points_to_what_was_meant(load, preset, error, message):
    with pytest.raises(error) as raised:
        load(preset)
    [line] = str(raised.value).splitlines()
    assert line.startswith("`preset` must be ") and line.endswith(message)
    # The message is not a list of two dozen names.
    assert len(line) < 250


def test_the_option_is_named():
    with pytest.raises(FileNotFoundError, match="^`teacher` must be the folder of a preset"):
        check_preset("run", "teacher")
