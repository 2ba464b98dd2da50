"""What became of a gesture: it works, it is refused clearly, or it fails.

A refusal is an answer: an error that Keras or this package raises, of one line of at most 200
characters, that names a thing in backquotes and says what to do. Anything else, however true, is a
failure to its reader.
"""

import dataclasses
import re
import traceback
from pathlib import Path

import keras

import keras_vjepa

LONGEST = 200
_KINDS = (ValueError, TypeError, NotImplementedError)
_FOLDERS = tuple(str(Path(module.__file__).parent) for module in (keras, keras_vjepa))
# Matches what Keras adds around the message of an error within a call.
_AROUND = re.compile(
    r"^Exception encountered when calling [^\n]*\n\n(.*?)\n\nArguments received by .*$", re.DOTALL
)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_REMEDY = re.compile(
    r"\b(must|consider|use|pass|call|export|save|set|make|wrap|give|see|needs?|install)\b", re.I
)

WORKS, REFUSES, FAILS = "works", "refuses", "fails"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a gesture ended.

    Attributes:
        word: `WORKS`, `REFUSES` or `FAILS`.
        message: of the error; empty where there was none.
    """

    word: str
    message: str = ""


def message_of(error: BaseException) -> str:
    """Return an error's own message, without what Keras puts around it."""
    text = _COLOURS.sub("", str(error)).strip()
    around = _AROUND.match(text)
    return around.group(1).strip() if around else text


def is_clear(message: str) -> bool:
    """Whether a message is one short line that names a thing and a remedy."""
    named = re.search(r"`[^`]+`", message) is not None
    short = "\n" not in message and len(message) <= LONGEST
    return named and short and _REMEDY.search(message) is not None


def outcome_of(error: BaseException) -> Outcome:
    """Judge an error that a gesture has raised."""
    message = message_of(error)
    frames = traceback.extract_tb(error.__traceback__)
    raised_in = frames[-1].filename if frames else ""
    answers = isinstance(error, _KINDS) and raised_in.startswith(_FOLDERS)
    if answers and is_clear(message):
        return Outcome(REFUSES, message)
    lines = [line for line in message.splitlines() if line.strip()]
    shown = f"{type(error).__name__}: {' / '.join(lines[:3])}"
    where = f" ({Path(raised_in).name})"
    return Outcome(FAILS, shown[:400] + where)
