"""How far a download is: a bar that fits the terminal, a few lines elsewhere."""

import sys

import pytest

from keras_vjepa.presets.transfer_display import TransferDisplay, amount

pytestmark = pytest.mark.data


class Clock:
    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def run(capsys, total, seconds, num_updates=1000):
    """What is printed of a steady download."""
    clock = Clock()
    display = TransferDisplay("vitl.pt", clock)
    display.begin(1_000_000, total)
    for step in range(1, num_updates + 1):
        clock.seconds += seconds / num_updates
        display.update(1_000_000 + (5_000_000_000 - 1_000_000) * step // num_updates)
    display.end(5_000_000_000)
    return capsys.readouterr().err


def test_lines_are_few(capsys):
    lines = run(capsys, 5_000_000_000, 200).splitlines()
    assert lines[0] == "vitl.pt: downloading (5 GB, of which 1 MB are here already)"
    assert lines[1] == "vitl.pt: 10%, 506 MB of 5 GB, 25 MB/s, 3:00 left"
    assert lines[-1] == "vitl.pt: downloaded 5 GB in 3:20, 25 MB/s"
    assert len(lines) in (11, 12)
    # A fast download does not print more lines either.
    assert len(run(capsys, 5_000_000_000, 4).splitlines()) == 2


def test_an_unknown_length(capsys):
    lines = run(capsys, None, 200).splitlines()
    assert lines[:2] == [
        "vitl.pt: downloading (length unknown, of which 1 MB are here already)",
        "vitl.pt: 1.01 GB, 25 MB/s",
    ]
    assert len(lines) in (6, 7)


@pytest.mark.parametrize("total", [5_000_000_000, None])
def test_a_bar_fits_the_terminal(total, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    err = run(capsys, total, 20)
    bars = err.split("\r")[1:-1]
    assert 50 <= len(bars) <= 110 and max(map(len, bars)) == (59 if total else 26)
    if total:
        assert "[##########          ] 5" in err and "of 5 GB" in err
    # Later output starts on a new line.
    assert err.splitlines()[-1].endswith("downloaded 5 GB in 0:20, 250 MB/s")


def test_amounts():
    found = [amount(n) for n in (0, 999, 1000, 5_127_726_842, 30_238_058_912, 2e12)]
    assert found == ["0 bytes", "999 bytes", "1 kB", "5.13 GB", "30.2 GB", "2 TB"]
