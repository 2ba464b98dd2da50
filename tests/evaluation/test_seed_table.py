"""Tables of a number for each seed: files that hold something else are refused."""

import pytest

from keras_vjepa.evaluation.seed_table import SeedTable, check_settings

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
