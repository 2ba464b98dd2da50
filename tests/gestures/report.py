"""Counts of the table's cells, and a picture of it for the terminal."""

from collections import Counter
from typing import Any

from tests.gestures.models import KINDS
from tests.gestures.outcome import FAILS, REFUSES, WORKS
from tests.gestures.table import PRECISIONS

SIGNS = {WORKS: "+", REFUSES: "o", FAILS: "#"}


def last_of_each(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the last result of each cell."""
    names = ("backend", "precision", "model", "gesture")
    return list({tuple(result[name] for name in names): result for result in results}.values())


def counts(results: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """Count outcomes, by backend."""
    found: dict[str, Counter[str]] = {}
    for result in last_of_each(results):
        found.setdefault(result["backend"], Counter())[result["outcome"]] += 1
    return found


def picture(results: list[dict[str, Any]]) -> str:
    """Draw rows of gestures and columns of models; in each, a sign for each precision."""
    lines = [
        ", ".join(f"{sign} {word}" for word, sign in SIGNS.items()) + ", . not there",
        f"in each place: {', '.join(PRECISIONS)}",
    ]
    results = last_of_each(results)
    for backend in dict.fromkeys(result["backend"] for result in results):
        own = [result for result in results if result["backend"] == backend]
        signs = {(r["gesture"], r["model"], r["precision"]): SIGNS[r["outcome"]] for r in own}
        columns = "  ".join(f"{name:15}" for name in KINDS)
        lines += ["", f"{backend:28}{columns}".rstrip()]
        for gesture in dict.fromkeys(result["gesture"] for result in own):
            cells = [
                "".join(signs.get((gesture, model, precision), ".") for precision in PRECISIONS)
                for model in KINDS
            ]
            row = "  ".join(f"{cell:15}" for cell in cells)
            lines.append(f"{gesture:28}{row}".rstrip())
    return "\n".join(lines)


def messages(results: list[dict[str, Any]], outcome: str) -> list[str]:
    """List what the cells of an outcome say, each message once, with the number of its cells."""
    said: dict[str, list[str]] = {}
    for result in last_of_each(results):
        if result["outcome"] == outcome:
            place = f"{result['backend']}: {result['gesture']} | {result['model']}"
            said.setdefault(result["message"], []).append(f"{place} | {result['precision']}")
    return [f"{len(at)} x {text}\n      {at[0]}" for text, at in said.items()]


def report(results: list[dict[str, Any]]) -> str:
    """Write the picture, what is refused, what fails, and the counts."""
    lines = [picture(results)]
    for outcome in (REFUSES, FAILS):
        lines += ["", f"{outcome}:", *messages(results, outcome)]
    lines.append("")
    for backend, found in counts(results).items():
        numbers = ", ".join(f"{found[word]} {word}" for word in (WORKS, REFUSES, FAILS))
        seconds = sum(r["seconds"] for r in last_of_each(results) if r["backend"] == backend)
        lines.append(f"{backend}: {sum(found.values())} cells: {numbers}; {seconds / 60:.1f} min")
    return "\n".join(lines)
