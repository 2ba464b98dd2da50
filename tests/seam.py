"""Finds code that asks which engine runs, or uses private names, by reading its syntax tree."""

import ast
from collections.abc import Iterable, Iterator

BACKENDS = {"jax", "torch", "tensorflow"}
# Attributes that only tensors of one engine have.
_OF_ONE_ENGINE = {"detach", "requires_grad", "is_cuda", "block_until_ready", "at"}
# Private names of Python's own that its documentation describes.
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
    found += _other_ways_to_ask(tree)
    names = _engine_variables(tree)
    for decision in _decisions(tree):
        for node in ast.walk(decision):
            if names_the_engine(node) or (isinstance(node, ast.Name) and node.id in names):
                found.append(f"line {node.lineno}: a decision by the engine's name")
    return found + _counted_arguments(tree)


def _docstrings(tree: ast.AST) -> set[int]:
    """Identities of the texts that stand as statements of their own."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def _other_ways_to_ask(tree: ast.AST) -> Iterator[str]:
    """Where the engine's name is had in another way, or for more than to be written down."""
    recorded = {
        id(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict | ast.List)
        for value in (node.values if isinstance(node, ast.Dict) else node.elts)
    }
    texts = _docstrings(tree)
    for node in ast.walk(tree):
        line = f"line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called.startswith("engine.name") and id(node) not in recorded:
                yield f"{line}: {called} is for records alone"
            if called == "getattr" and dotted(node.args[0]).split(".")[0] == "keras":
                yield f"{line}: getattr of keras"
            asked = node.args[1] if called in ("hasattr", "getattr") and node.args[1:] else None
            if isinstance(asked, ast.Constant) and asked.value in _OF_ONE_ENGINE:
                yield f"{line}: {called} of {asked.value}, which one engine's tensors have"
        elif isinstance(node, ast.Attribute) and node.attr == "__module__":
            if id(node) not in recorded:
                yield f"{line}: {ast.unparse(node)} is for records alone"
        elif isinstance(node, ast.Attribute) and dotted(node) == "config.backend":
            yield f"{line}: {dotted(node)}"
        elif isinstance(node, ast.Constant) and id(node) not in texts:
            if "KERAS_BACKEND" in str(node.value):
                yield f"{line}: the variable KERAS_BACKEND"
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                full = f"{module}.{alias.name}".strip(".")
                of_keras = full.split(".")[0] == "keras" and not full.startswith("keras.src")
                if of_keras and {"backend", "config"} & set(full.split(".")):
                    yield f"{line}: import of {full}"
                renamed = full.endswith("backend.engine") and alias.asname
                if renamed or full.startswith("keras_vjepa.backend.engine."):
                    yield f"{line}: import of {full}, under another name than `engine`"


def modules_by_name(source: str) -> list[str]:
    """Where code imports, or looks for, a module whose name is a text: no rule sees which."""
    found = []
    for node in ast.walk(ast.parse(source)):
        called = dotted(node.func) if isinstance(node, ast.Call) else ""
        asks = called.split(".")[-1] in ("import_module", "__import__", "find_spec", "find_loader")
        if asks and ast.unparse(node.args[0]) != "'av'":
            found.append(f"line {node.lineno}: {called}")
        if isinstance(node, ast.Attribute) and dotted(node) == "sys.modules":
            found.append(f"line {node.lineno}: sys.modules")
    return found


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
        if not function.name.endswith("_step"):
            continue
        # In a step, everything that depends on the number of arguments.
        names = {function.args.vararg.arg}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and names & _names_in(node.value):
                names |= {name for target in node.targets for name in _names_in(target)}
        for decision in _decisions(function):
            if names & _names_in(decision):
                found.append(f"line {decision.lineno}: a decision by the arguments of a step")
    return found


def _names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


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
    bases: dict[str, list[str]] = {}
    for source in sources:
        tree = ast.parse(source)
        imported = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names = [dotted(base) for base in node.bases]
                bases[node.name] = [imported.get(name, name) for name in names]
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
        if isinstance(node, ast.Attribute) and dotted(node) == "keras.src":
            found.append(f"{line}: keras.src")
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
        found += [f"{line}: {text!r}" for text in _attributes_as_text(node) if text not in own]
    return found


_TAKE_NAMES = ("getattr", "hasattr", "setattr", "delattr", "attrgetter", "methodcaller")


def _attributes_as_text(node: ast.AST) -> list[str]:
    """Private attributes whose names stand as texts: in `getattr` and its like, in `vars(...)`."""
    candidates: list[ast.AST] = []
    if isinstance(node, ast.Call):
        last = dotted(node.func).split(".")[-1]
        if last in _TAKE_NAMES or last in ("__setattr__", "__getattribute__", "__delattr__"):
            candidates = list(node.args)
    elif isinstance(node, ast.Subscript):
        held = ast.unparse(node.value)
        if held.startswith("vars(") or held.endswith(".__dict__"):
            candidates = [node.slice]
    texts = [one.value for one in candidates if isinstance(one, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and is_private(text)]
