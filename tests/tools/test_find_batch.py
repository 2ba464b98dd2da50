"""The largest batch that fits: how it is searched for, and what counts as not fitting."""

import sys

import keras
import pytest

from keras_vjepa.tools import find_batch

SMALL = (
    "--image_size 16 --num_frames 2 --patch_size 8 --hidden_dim 8 --num_layers 1 --num_heads 1 "
    "--predictor_hidden_dim 8 --predictor_num_layers 1 --masks random_tokens --mask_ratio 0.5"
).split()


@pytest.mark.data
@pytest.mark.parametrize(
    ("limit", "unit", "most", "expected"),
    [(21, 1, 4096, (21, 22)), (21, 4, 4096, (20, 24)), (0, 1, 64, (0, 1)), (99, 1, 64, (64, None))],
)
def test_the_search(limit, unit, most, expected):
    tried = []
    found = find_batch.largest(lambda n: tried.append(n) or n <= limit, unit, most)
    assert found == expected
    assert all(n % unit == 0 and n <= most for n in tried) and len(tried) == len(set(tried))


@pytest.mark.data
def test_a_large_number_is_found_to_a_sixteenth():
    tried = []
    low, high = find_batch.largest(lambda n: tried.append(n) or n <= 1000, 1, 4096)
    assert low <= 1000 < high and high - low <= 1000 / 16 and len(tried) < 16


@pytest.mark.data
def test_what_is_found_is_said(monkeypatch, capsys):
    def fake(arguments, batch_size, memory):
        assert arguments == SMALL + ["--memory", "2"] and memory == 2
        return "1.0 GiB" if batch_size <= 6 else None

    monkeypatch.setattr(find_batch, "try_batch", fake)
    find_batch.main([*SMALL, "--memory", "2"])
    said = capsys.readouterr()
    assert said.out == "--batch_size 6 fits, 7 does not fit.\n"
    assert "4: 1.0 GiB\n8: does not fit\n" in said.err
    monkeypatch.setattr(find_batch, "try_batch", lambda *given: None)
    with pytest.raises(SystemExit, match="^find_batch.py: no batch fits"):
        find_batch.main(SMALL)
    with pytest.raises(SystemExit):
        find_batch.main(["--memory", "0"])
    assert "--memory must be in (0, 1000000] or None. Received: 0" in capsys.readouterr().err


@pytest.mark.data
@pytest.mark.parametrize(
    ("program", "fits"),
    [
        ("print('noise'); print('1 GiB')", "1 GiB"),
        ("raise SystemExit(3)", None),
        ("import os; os.kill(os.getpid(), 9)", None),
        ("raise RuntimeError('CUDA out of memory. Tried to allocate')", None),
        ("raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')", None),
    ],
)
def test_what_counts_as_not_fitting(program, fits, monkeypatch):
    monkeypatch.setattr(find_batch, "_CHILD", program)
    assert find_batch.try_batch([], 1, 1.0) == fits


@pytest.mark.data
def test_another_error_ends_the_search(monkeypatch):
    monkeypatch.setattr(find_batch, "_CHILD", "raise ValueError('the masks are wrong')")
    with pytest.raises(RuntimeError, match="^ValueError: the masks are wrong$"):
        find_batch.try_batch([], 1, 1.0)


@pytest.mark.slow
def test_a_process_that_holds_too_much_ends_and_others_do_not(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", keras.config.backend())
    assert "GiB" in find_batch.try_batch(SMALL, 2, 16.0)
    assert find_batch.try_batch(SMALL, 2, 0.05) is None
    assert sys.executable
