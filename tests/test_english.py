"""Docstrings: every first line begins with a verb, and no public name is without one."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

pytestmark = pytest.mark.data

CODE = [p for room in ("keras_vjepa", "recipes", "tools") for p in (ROOT / room).rglob("*.py")]
# Verbs that are missing here may be added. If a word is also a noun, check by eye that it is used
# as a verb.
VERBS = set(
    """
fine-tune pretrain
accept adapt add answer apply ask assign augment average begin blend build call change check
choose classify clip collect combine compare compile complete compute configure convert copy
convolve count cover crop cut decay decode define derive describe detect divide do download draw
embed
encode end enlarge estimate evaluate exempt fetch fill find fit flush follow forget free freeze
give go group hand handle hash have hide hold ignore import index inspect interpolate interpret
iterate join judge keep kill label lay learn leave lend let list load lock log look make manage map
mark
measure merge mix move multiply name normalise normalize note offer open optimize order parse
pass pick pool predict print probe project protect put quantize raise read receive record refuse
register remember remove rename render reorder replace report reset resize restore return
rewrite rotate round run save say scale select set shorten show shrink slide sort split spread
stand start stop stretch subtract sum take tell test tile time train transform try turn update
upload view wait warm warn wrap write yield
""".split()
)
# Methods that are documented by Keras, torch or a protocol of this package.
OF_A_PARENT = set(
    """
build call compile_from_config compute_loss compute_output_shape compute_output_spec forward
from_config get_compile_config get_config number_in on_epoch_begin on_train_batch_end persistent_id
on_train_begin on_train_end source trainable weight_decay
""".split()
)

Definition = ast.FunctionDef | ast.ClassDef


def definitions(tree: ast.AST, is_public: bool = True) -> Iterator[tuple[Definition, bool]]:
    """Functions and classes of a file, and whether users see them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Definition):
            shown = is_public and not node.name.startswith("_")
            yield node, shown
            yield from definitions(node, shown and isinstance(node, ast.ClassDef))
        else:
            yield from definitions(node, is_public)


def begins_with_a_verb(line: str) -> bool:
    """Whether the first word is a known verb, in the imperative or the third person."""
    word = line.split()[0].rstrip(",:;.").lower()
    endings = (("", ""), ("s", ""), ("es", ""), ("ies", "y"))
    stems = {word.removesuffix(end) + new for end, new in endings if word.endswith(end)}
    return bool(stems & VERBS)


def complaints(source: str, documented: set[str]) -> list[str]:
    """What is wrong with the docstrings of a file."""
    found = []
    for node, is_public in definitions(ast.parse(source)):
        text = ast.get_docstring(node)
        if text is None:
            if is_public and node.name not in documented | OF_A_PARENT:
                found.append(f"line {node.lineno}: {node.name} has no docstring")
        elif not begins_with_a_verb(text):
            found.append(f"line {node.lineno}: {node.name} begins with {text.split()[0]!r}")
    return found


def documented_names() -> set[str]:
    """Names that have a docstring somewhere: a method that overrides one needs none."""
    trees = [ast.parse(path.read_text()) for path in CODE]
    return {n.name for tree in trees for n, _ in definitions(tree) if ast.get_docstring(n)}


def test_every_docstring_begins_with_a_verb():
    known = documented_names()
    found = {str(path.relative_to(ROOT)): complaints(path.read_text(), known) for path in CODE}
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_what_does_not_is_found():
    source = '''
class Clip:
    """A clip."""
    def length(self): ...
    def _end(self): ...
def reads():
    """Reads a clip."""
'''
    assert complaints(source, set()) == [
        "line 2: Clip begins with 'A'",
        "line 4: length has no docstring",
    ]
    assert complaints(source, {"length"}) == ["line 2: Clip begins with 'A'"]
    assert Path(__file__) not in CODE
