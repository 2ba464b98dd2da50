"""Say to Griffe what the sections of this package's docstrings are, before it parses them."""

import re
import textwrap
from typing import Any

import griffe

# From the word to the last line of the last example; examples may have empty lines between them.
_EXAMPLE = re.compile(r"^Example:\n\n((?:(?!\n\n(?!>>>)).)*)", re.MULTILINE | re.DOTALL)
# An entry for several arguments, with its continuation lines.
_SEVERAL = re.compile(r"^    (\w+(?:, \w+)+):(.*(?:\n {8}.*)*)", re.MULTILINE)
# What is returned is described in prose, in which a colon does not end a type. A class has no
# annotation to stand before it: what its calls return is a paragraph.
_RETURNS = re.compile(r"^(Returns|Yields):\n    (?=.*:)", re.MULTILINE)
_RETURNS_OF_A_CLASS = re.compile(r"^Returns:\n((?:    .*\n?|\n(?=    ))+)", re.MULTILINE)


class PlainSections(griffe.Extension):
    """Turns sections that Griffe does not know into those that it knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object that was just loaded."""
        if obj.docstring is not None:
            obj.docstring.value = known_sections(obj.docstring.value, of_a_class=obj.is_class)


def known_sections(text: str, of_a_class: bool = False) -> str:
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
    if of_a_class:
        text = _RETURNS_OF_A_CLASS.sub(_as_paragraph, text)
    text = _RETURNS.sub(r"\1:\n    : ", text)
    text = _SEVERAL.sub(_one_by_one, text)
    return _EXAMPLE.sub(lambda found: "Examples:\n" + _indented(found[1]), text)


def _as_paragraph(section: re.Match[str]) -> str:
    return "**Returns:**\n\n" + textwrap.dedent(section[1])


def _one_by_one(entry: re.Match[str]) -> str:
    return "\n".join(f"    {name}:{entry[2]}" for name in entry[1].split(", "))


def _indented(block: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in block.splitlines())
