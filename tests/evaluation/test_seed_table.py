"""Tables of a number for each seed: files that hold something else are refused."""

import json

import pytest

from keras_vjepa.evaluation.seed_table import SeedTable, check_settings, with_settings

pytestmark = pytest.mark.data


@pytest.mark.parametrize(
    "text", ['{"h": 3}', '{"h": {"m": 3}}', '{"h": {"m": {"r": {"1": "x"}}}}', '{"h": [{}]}']
)
def test_numbers_of_another_shape_are_refused(text, tmp_path):
    (tmp_path / "table.json").write_text(text)
    with pytest.raises(ValueError, match=r"`workdir` must hold .*/table.json, which is damaged"):
        SeedTable(tmp_path, "h", ["m"])
    assert (tmp_path / "table.json").read_text() == text


def test_settings_of_another_shape_are_refused(tmp_path):
    (tmp_path / "settings.json").write_text('{"h": [1]}')
    with pytest.raises(ValueError, match=r"settings.json, which is damaged: restore it, or"):
        check_settings(tmp_path, "h", {"epochs": 1})


def test_numbers_that_are_there_are_read(tmp_path):
    SeedTable(tmp_path, "h", ["m"]).fill("m", "r", 1, lambda: 0.5)
    again = SeedTable(tmp_path, "h", ["m"])
    again.fill("m", "r", 1, lambda: 1 / 0)
    again.fill("m", "r", 2, lambda: 1)
    assert "| r | 75.0" in again.text() and "(2)" in again.text()


def fail_with(workdir, key, current, work=lambda: None):
    with pytest.raises(OSError, match="refused"), with_settings(workdir, key, current):
        work()
        raise OSError("refused")


def test_settings_that_nothing_was_made_with_are_taken_back(tmp_path):
    fail_with(tmp_path, "h", {"epochs": 1})
    assert not [*tmp_path.iterdir()]
    # A run that has begun has its own files, and continues with these settings only.
    fail_with(tmp_path, "h", {"epochs": 1}, (tmp_path / "a run").mkdir)
    with (
        pytest.raises(ValueError, match="--epochs 1 -> 2"),
        with_settings(tmp_path, "h", {"epochs": 2}),
    ):
        pass
    # Those of other numbers stay as they are, and those of a first number are kept.
    before = (tmp_path / "settings.json").read_text()
    fail_with(tmp_path, "other", {"epochs": 2})
    assert (tmp_path / "settings.json").read_text() == before
    table = SeedTable(tmp_path, "h", ["m"])
    table.fill("m", "r", 1, lambda: 0.5)
    table.heading = "other"
    fail_with(tmp_path, "other", {"epochs": 2}, lambda: table.fill("m", "r", 1, lambda: 0.5))
    assert json.loads((tmp_path / "settings.json").read_text())["other"] == {"epochs": 2}
