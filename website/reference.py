"""Write the pages of the API reference: one entry for every public name of the package.

What is public is what `__all__` of the package and of its folders says. It is read from the source,
without an import, so neither this module nor the site needs a backend.
"""

import ast
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "keras_vjepa"
INDEX = "reference/index.md"
# Attributes of the package that the reference has no entry for.
NOT_DESCRIBED = {"__version__"}


@dataclass(frozen=True)
class Room:
    """Holds a package with an `__all__`: its dotted name, first line and public names."""

    name: str
    summary: str
    names: tuple[str, ...]


@functools.cache
def rooms() -> tuple[Room, ...]:
    """Return the package itself and each of its folders that says what is public."""
    found = []
    for path in sorted((ROOT / PACKAGE).rglob("__init__.py")):
        tree = ast.parse(path.read_text())
        names = _all_of(tree)
        if names:
            dotted = ".".join(path.parent.relative_to(ROOT).parts)
            summary = (ast.get_docstring(tree) or "").split("\n")[0]
            found.append(Room(dotted, summary, names))
    return tuple(found)


def _all_of(tree: ast.Module) -> tuple[str, ...]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


def has_own_page(name: str) -> bool:
    """Tell whether a name has a page of its own: the models do, the rest shares its room's."""
    return name.startswith("VJEPA")


@functools.cache
def places() -> dict[str, tuple[str, str]]:
    """Return where each public object is described, by its name: the page and the dotted name.

    A name that several packages offer is described once: a model as users import it, everything
    else where it is at home, in the folder.
    """
    found: dict[str, tuple[str, str]] = {}
    top, *folders = rooms()
    inside = {name for folder in folders for name in folder.names}
    packages = {folder.name.rpartition(".")[2] for folder in folders}
    for name in top.names:
        if has_own_page(name):
            found[name] = (f"reference/{name}.md", f"{PACKAGE}.{name}")
        elif name not in inside | packages | NOT_DESCRIBED:
            found[name] = (INDEX, f"{PACKAGE}.{name}")
    for folder in folders:
        for name in folder.names:
            found.setdefault(name, (_page_of(folder), f"{folder.name}.{name}"))
    return found


def _page_of(folder: Room) -> str:
    return f"reference/{folder.name.removeprefix(PACKAGE + '.')}.md"


def pages() -> dict[str, str]:
    """Return the Markdown of every page of the reference, by its path in the site."""
    top, *folders = rooms()
    where = places()
    texts = {INDEX: _index(top, folders, where)}
    for name, (page, dotted) in where.items():
        if has_own_page(name):
            texts[page] = f"---\ntitle: {name}\n---\n\n{_entry(dotted, level=1)}"
    for folder in folders:
        here = _page_of(folder)
        own = [where[name][1] for name in folder.names if where[name][0] == here]
        entries = "\n".join(_entry(dotted, level=2) for dotted in own)
        table = _names(folder, folder.names, where)
        texts[here] = f"# {folder.name}\n\n{folder.summary}\n\n{table}\n{entries}"
    return texts


def _index(top: Room, folders: Sequence[Room], where: dict[str, tuple[str, str]]) -> str:
    own = [name for name in top.names if name in where]
    rows = "".join(
        f"| [`{folder.name}`]({Path(_page_of(folder)).name}) | {folder.summary} |\n"
        for folder in folders
    )
    entries = "\n".join(_entry(dotted, level=2) for page, dotted in where.values() if page == INDEX)
    return (
        "# Reference\n\nWhat is public, from the docstrings of the source. "
        f"Straight from `{PACKAGE}` come:\n\n{_names(top, own, where)}\n"
        f"The folders have more:\n\n| package | what it holds |\n|---|---|\n{rows}\n{entries}"
    )


def _names(room: Room, names: Sequence[str], where: dict[str, tuple[str, str]]) -> str:
    rows = (f"| [`{n}`][{where[n][1]}] | {first_line(room.name, n)} |\n" for n in names)
    return "| | |\n|---|---|\n" + "".join(rows)


def first_line(package: str, name: str) -> str:
    """Return the first line of the docstring of what a package imports or defines by a name."""
    tree = _tree(package)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and name in (alias.name for alias in node.names):
            return first_line(str(node.module), name)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return (ast.get_docstring(node) or "").split("\n")[0].replace("|", "\\|")
    return ""


@functools.cache
def _tree(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    return ast.parse(
        (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    )


def _entry(dotted: str, level: int) -> str:
    return f"::: {dotted}\n    options:\n      heading_level: {level}\n"


def navigation() -> list[dict[str, str]]:
    """Return the part of the site's navigation that leads to the reference."""
    models = [name for name in places() if has_own_page(name) and places()[name][1].count(".") == 1]
    return [
        {"Overview": INDEX},
        *({name: f"reference/{name}.md"} for name in models),
        *({folder.name: _page_of(folder)} for folder in rooms()[1:]),
    ]
