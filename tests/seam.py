"""Finds code that asks which engine runs, or uses private names, by reading its syntax tree."""

import ast
from collections.abc import Iterable, Iterator

BACKENDS = {"jax", "torch", "tensorflow"}
# Python's own, as its documentation says.
_OF_PYTHON = {"os._exit", "self._actions"}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a chain of attributes, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else node.attr
    return ""


def names_the_engine(node: ast.AST) -> bool:
    """Whether an expression is a call that returns the engine's name."""
    if not isinstance(node, ast.Call):
        return False
    called = dotted(node.func)
    return called.split(".")[-1] == "backend" or called.endswith("engine.name")


def _decides_by_engine(node: ast.AST, names: set[str], telling: set[str]) -> bool:
    """Whether an expression compares the engine's name, or calls what does."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Compare):
            sides = [inner.left, *inner.comparators]
            if any(names_the_engine(s) or dotted(s) in names for s in sides):
                return True
        if isinstance(inner, ast.Call) and dotted(inner.func).split(".")[-1] in telling:
            return True
        if isinstance(inner, ast.Name) and inner.id in telling:
            return True
    return False


def _engine_variables(function: ast.AST) -> set[str]:
    """Names that are bound to the engine's name somewhere in a function or module."""
    return {
        target.id
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and names_the_engine(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _tells(function: ast.FunctionDef, telling: set[str]) -> bool:
    names = _engine_variables(function)
    returned = [
        node.value for node in ast.walk(function) if isinstance(node, ast.Return) and node.value
    ]
    if any(_decides_by_engine(value, names, telling) for value in returned):
        return _is_a_verdict(returned)
    asks = any(
        _decides_by_engine(node.test, names, telling)
        for node in ast.walk(function)
        if isinstance(node, ast.If | ast.IfExp)
    )
    return asks and bool(returned) and all(isinstance(v, ast.Constant) for v in returned)


def _is_a_verdict(returned: Iterable[ast.AST]) -> bool:
    """Whether what is returned is true or false, a number or text, rather than a result."""
    kinds = (ast.Compare, ast.BoolOp, ast.UnaryOp, ast.Constant, ast.IfExp, ast.Call, ast.Name)
    return all(
        isinstance(value, kinds)
        and not (isinstance(value, ast.IfExp) and not isinstance(value.body, ast.Constant))
        for value in returned
    )


def telling_names(sources: Iterable[str]) -> set[str]:
    """Functions and constants of modules whose value says which engine runs.

    A function that returns a comparison with the engine's name, or what such a function returned,
    or one constant or another by it.
    """
    trees = [ast.parse(source) for source in sources]
    found: set[str] = set()
    while True:
        new = set()
        for tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef) and _tells(node, found):
                    new.add(node.name)
            for node in tree.body:
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                    if _decides_by_engine(node.value, _engine_variables(tree), found):
                        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                        new |= {dotted(target) for target in targets}
        if new <= found:
            return found
        found |= new


def _decisions(tree: ast.AST) -> Iterator[ast.AST]:
    """Expressions that what is done next depends on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While):
            yield node.test
        elif isinstance(node, ast.Compare | ast.BoolOp):
            yield node
        elif isinstance(node, ast.Match):
            yield node.subject
        elif isinstance(node, ast.Subscript):
            yield node.slice


def engine_questions(source: str, telling: set[str]) -> list[str]:
    """Where code outside the seam asks which engine runs, or is told under another name.

    Args:
        source: of a module outside `backend/`.
        telling: see `telling_names`.
    """
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in BACKENDS:
            found.append(f"line {node.lineno}: the name {node.value!r}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                roots = {module.split(".")[0], alias.name.split(".")[0]}
                if (roots & BACKENDS and not module.startswith("keras")) or alias.name in telling:
                    found.append(f"line {node.lineno}: import of {alias.name}")
        if isinstance(node, ast.Attribute) and node.attr in telling:
            found.append(f"line {node.lineno}: {dotted(node)}")
        if isinstance(node, ast.Call) and dotted(node.func).endswith("backend.backend"):
            found.append(f"line {node.lineno}: {dotted(node.func)}")
        if isinstance(node, ast.Attribute) and dotted(node) == "keras.config.backend":
            found.append(f"line {node.lineno}: keras.config.backend")
    names = _engine_variables(tree)
    for decision in _decisions(tree):
        for node in ast.walk(decision):
            if names_the_engine(node) or (isinstance(node, ast.Name) and node.id in names):
                found.append(f"line {node.lineno}: a decision by the engine's name")
    return found + _counted_arguments(tree)


def _counted_arguments(tree: ast.AST) -> list[str]:
    """Decisions by the number of arguments, which differs between the engines' trainers."""
    found = []
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.args.vararg is None:
            continue
        counted = f"len({function.args.vararg.arg})"
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and counted in ast.unparse(node):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


# --- Private names -------------------------------------------------------------------------------


def own_private_names(sources: Iterable[str]) -> set[str]:
    """Private names that the sources define: functions, classes, variables, attributes."""
    names = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                names.add(node.id if isinstance(node, ast.Name) else node.attr)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Call) and dotted(node.func) == "object.__setattr__":
                names.add(node.args[1].value)
    return {name for name in names if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def classes_of_keras(sources: Iterable[str]) -> set[str]:
    """Classes of the sources that derive from one of Keras, or from such a class."""
    bases = {
        node.name: [dotted(base) for base in node.bases]
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    while True:
        new = {
            name
            for name, above in bases.items()
            if any(b.startswith("keras.") or b.split(".")[-1] in found for b in above)
        }
        if new == found:
            return found
        found = new


def private_uses(
    source: str, own: set[str], foreign: set[str], of_keras: set[str] = frozenset()
) -> list[str]:
    """Where a module uses or overrides private names of Keras or an engine.

    Args:
        source: of a module other than `keras_internals.py`.
        own: private names that the package defines.
        foreign: private attributes of Keras' classes.
        of_keras: classes that derive from one of those.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        line = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in own and dotted(node) not in _OF_PYTHON:
                found.append(f"{line}: {dotted(node)}")
        if isinstance(node, ast.ClassDef) and node.name in of_keras:
            names = own_private_names([ast.unparse(node)]) & foreign
            found += [f"{line}: {node.name} overrides {name}" for name in sorted(names)]
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                parts = f"{module}.{alias.name}".strip(".").split(".")
                outside = parts[0] in {"keras", *BACKENDS}
                if outside and (parts[:2] == ["keras", "src"] or any(map(is_private, parts))):
                    found.append(f"{line}: import of {'.'.join(parts)}")
        if isinstance(node, ast.Call) and dotted(node.func) in ("getattr", "hasattr", "setattr"):
            text = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if isinstance(text, str) and is_private(text) and text not in own:
                found.append(f"{line}: {text!r}")
    return found
