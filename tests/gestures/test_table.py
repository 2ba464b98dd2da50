"""What judges a gesture, and a run through the table that is stopped and goes on."""

import json

import keras
import pytest

from tests.gestures import table
from tests.gestures.outcome import FAILS, REFUSES, WORKS, Outcome, is_clear, outcome_of
from tests.gestures.report import counts, messages, picture
from tests.gestures.table import Place, read_results, run

pytestmark = pytest.mark.data

CELLS = [Place("float32", "probe", gesture) for gesture in ("call", "predict", "fit")]


@pytest.mark.parametrize(
    "message,clear",
    [
        ("`format` must be 'onnx' or 'torch'. Received: 'pdf'", True),
        ("A probe alone has no preset: use `save`.", True),
        ("format must be 'onnx'", False),
        ("`format` is wrong", False),
        ("`format` must be 'onnx'.\nReceived: 'pdf'", False),
        (f"`format` must be {'a' * 200}", False),
    ],
)
def test_a_refusal_is_one_short_line_with_a_name_and_a_remedy(message, clear):
    assert is_clear(message) == clear


def caught(function):
    with pytest.raises(Exception) as raised:
        function()
    return outcome_of(raised.value)


def test_who_raises_counts():
    """Keras' own errors and ours are answers; the same words from elsewhere are not."""

    def of_keras():
        keras.Sequential([1])

    def of_another():
        raise ValueError("`a` must be b")

    assert caught(of_another).word == FAILS
    assert caught(of_keras).word == FAILS  # the message is not one line with a name and a remedy
    from keras_vjepa import VJEPABackbone

    refused = caught(lambda: VJEPABackbone(image_size=33))
    assert refused.word == REFUSES and "`image_size` must be" in refused.message


def test_what_keras_puts_around_a_message_is_not_counted():
    text = (
        "Exception encountered when calling A.call().\n\n\x1b[1m`a` must be b\x1b[0m\n\n"
        "Arguments received by A.call():\n  • a=1\n  • b=2"
    )
    assert outcome_of(ValueError(text)).message.startswith("ValueError: `a` must be b (")


@pytest.fixture
def made(monkeypatch):
    """The cells that a run has made, with outcomes as `outcomes` says."""
    made, outcomes = [], {"fit": Outcome(FAILS, "`a` must be b")}

    def run_cell(place, fresh):
        made.append(place)
        outcome = outcomes.get(place.gesture, Outcome(WORKS))
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(table, "run_cell", run_cell)
    monkeypatch.setattr(table, "places", lambda backend: CELLS)
    return made, outcomes


def test_a_run_goes_on_where_it_was_stopped(made, tmp_path):
    made, outcomes = made
    path = tmp_path / "results.jsonl"
    outcomes["predict"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(path)
    assert made == CELLS[:2] and len(read_results(path)) == 1
    del outcomes["predict"]
    # A process that is killed while it writes a line leaves this.
    with path.open("a") as file:
        file.write('{"backend": "to')
    run(path)
    assert made == [*CELLS[:2], *CELLS[1:]]
    results = read_results(path)
    assert [result["outcome"] for result in results] == [WORKS, WORKS, FAILS]
    run(path)
    assert len(made) == 4
    assert counts(results) == {keras.config.backend(): {WORKS: 2, FAILS: 1}}
    assert messages(results, FAILS)[0].startswith("1 x `a` must be b")
    row = next(line for line in picture(results).splitlines() if line.startswith("fit"))
    assert row.split() == ["fit", *["......"] * 5, "#.....", *["......"] * 3]


def test_a_cell_that_ends_the_process_fails_and_is_passed_over(made, tmp_path):
    made, _ = made
    path = tmp_path / "results.jsonl"
    begun = path.with_name(path.name + ".begun")
    begun.write_text(f"{keras.config.backend()} | {CELLS[1]}")
    run(path)
    assert made == [CELLS[0], CELLS[2]] and not begun.exists()
    result = next(json.loads(line) for line in path.open() if '"predict"' in line)
    assert (result["outcome"], result["message"]) == (FAILS, "it ended the process")
