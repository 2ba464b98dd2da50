"""Say to Griffe what the sections of this package's docstrings are, before it parses them."""

import re
from typing import Any

import griffe

# From the word to the last line of the last example; examples may have empty lines between them.
_EXAMPLE = re.compile(r"^Example:\n\n((?:(?!\n\n(?!>>>)).)*)", re.MULTILINE | re.DOTALL)
# An entry for several arguments, with its continuation lines.
_SEVERAL = re.compile(r"^    (\w+(?:, \w+)+):(.*(?:\n {8}.*)*)", re.MULTILINE)
# What is returned is described in prose, in which a colon does not end a type.
_RETURNS = re.compile(r"^(Returns|Yields):\n    (?=.*:)", re.MULTILINE)


class PlainSections(griffe.Extension):
    """Turns sections that Griffe does not know into those that it knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was just loaded."""
        if obj.docstring is not None:
            obj.docstring.value = known_sections(obj.docstring.value)


def known_sections(text: str) -> str:
    """Return a docstring whose sections have the names and the form that Griffe reads.

    Examples are indented, arguments of a call are called so, and each argument has an entry.

    >>> print(known_sections("Add.\\n\\nExample:\\n\\n>>> 1 + 1\\n2"))
    Add.
    <BLANKLINE>
    Examples:
        >>> 1 + 1
        2
    """
    text = re.sub("^Call arguments:$", "Other Args: Call arguments", text, flags=re.MULTILINE)
    text = _RETURNS.sub(r"\1:\n    : ", text)
    text = _SEVERAL.sub(_one_by_one, text)
    return _EXAMPLE.sub(lambda found: "Examples:\n" + _indented(found[1]), text)


def _one_by_one(entry: re.Match[str]) -> str:
    return "\n".join(f"    {name}:{entry[2]}" for name in entry[1].split(", "))


def _indented(block: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in block.splitlines())
