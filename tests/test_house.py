"""The house's rules: who may import whom, who may name a backend, what is public."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import keras_vjepa
from tests.support import ROOT

PACKAGE = ROOT / "keras_vjepa"
MODULES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
CODE = MODULES + RECIPES + TOOLS
BACKENDS = {"jax", "torch", "tensorflow"}

# Lowest first. A module belongs to the longest name here that its own begins with; it imports from
# floors below its own, and from its own folder.
FLOORS = (
    "types",
    "files",
    "configuration",
    "data.random_streams",
    "data.reading",
    "data.sources",
    "data.transforms",
    "data.batches",
    "data",
    "backend",
    "layers",
    "presets",
    "models",
    "training",
    "tasks",
    "monitoring.statistics",
    "evaluation",
    "monitoring",
    "preprocessor",
    "conversion",
    "zoo",
    "",
    "recipes",
    "tools",
)
# What the model side knows of data is the batch, and nothing else.
KNOW_NO_DATA = ("backend", "layers", "presets", "models", "tasks")


def module_name(path: Path) -> str:
    """Its name below the package, "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "keras_vjepa" else parts
    return ".".join(parts).removesuffix("__init__").rstrip(".")


def floor(module: str) -> str:
    """The floor that a module stands on."""
    return max((f for f in FLOORS if (module + ".").startswith(f + ".") or f == ""), key=len)


def imports(source: str) -> set[str]:
    """Absolute names of what a file imports, anywhere in it; of the package, modules and names."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(source: str) -> set[str]:
    """Modules of the package that a file imports, as `module_name` has them."""
    known = {module_name(path) for path in CODE}
    found = set()
    for name in imports(source):
        if name.split(".")[0] != "keras_vjepa":
            continue
        inner = name.removeprefix("keras_vjepa").lstrip(".")
        # The module itself, or the module that holds the name.
        found.add(inner if inner in known else inner.rpartition(".")[0])
    return found


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def upward_imports(module: str, source: str) -> list[str]:
    """What a module imports from its own floor or above, its own folder aside."""
    own = floor(module)
    return [
        below
        for below in sorted(imported_modules(source))
        if not (
            FLOORS.index(floor(below)) < FLOORS.index(own)
            or (floor(below) == own and own != "" and below != module)
        )
    ]


@pytest.mark.parametrize("path", CODE, ids=name)
def test_imports_point_down(path):
    assert upward_imports(module_name(path), path.read_text()) == []
    roots = {module.split(".")[0] for module in imports(path.read_text())}
    assert not roots & {"recipes", "tools", "tests"}


def test_an_upward_import_is_found():
    assert upward_imports("layers.dense", "from keras_vjepa.models.backbone import SIZES")
    lazy = "def f():\n    from keras_vjepa import VJEPABackbone"
    assert upward_imports("training.optimizer", lazy) == [""]
    assert upward_imports("data.reading.video", "from keras_vjepa.data.batches import indexed")
    assert not upward_imports("layers.dense", "from keras_vjepa.backend import token_ops")


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import themselves by way of others."""
    found = []
    for start in graph:
        seen: set[str] = set()
        ahead = list(graph[start])
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead += graph.get(module, ())
        if start in seen:
            found.append(start)
    return found


def test_no_circle():
    graph = {module_name(path): imported_modules(path.read_text()) for path in CODE}
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=name)
def test_the_data_side_knows_no_model(path):
    roots = {module.split(".")[0] for module in imports(path.read_text())}
    assert not roots & (BACKENDS | {"keras"})


@pytest.mark.parametrize(
    "path", [p for p in MODULES if module_name(p).startswith(KNOW_NO_DATA)], ids=name
)
def test_the_model_side_knows_no_data(path):
    assert not {m for m in imported_modules(path.read_text()) if m.split(".")[0] == "data"}


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent.name != "backend"], ids=name)
def test_no_backend_names_outside_the_seam(path):
    assert not {module.split(".")[0] for module in imports(path.read_text())} & BACKENDS
    strings = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not strings & BACKENDS


@pytest.mark.parametrize("path", CODE, ids=name)
def test_functions_fit_on_a_screen_and_are_annotated(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{path.name}: {node.name} has {length} lines"
            assert node.returns is not None, f"{path.name}: {node.name} has no return annotation"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__main__.py"], ids=name)
def test_modules_name_their_sections(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    if path.name != "__init__.py":
        head = docstring.split("\n\n")[:2]
        assert "§" in " ".join(head) or "App." in " ".join(head), path


def test_the_public_api():
    assert set(keras_vjepa.__all__) == {
        "AdamW",
        "AttentivePooler",
        "CosineSchedule",
        "LinearSchedule",
        "VJEPABackbone",
        "VJEPAPredictor",
        "VJEPAPretrainer",
        "VJEPAProbe",
        "VJEPAVideoClassifier",
        "VJEPAVideoPreprocessor",
        "WarmupCosine",
        "__version__",
        "list_presets",
    }
    for public in set(keras_vjepa.__all__) - {"__version__"}:
        item = getattr(keras_vjepa, public)
        documented = inspect.getdoc(item)
        assert documented and "Example" in documented and "Args:" in documented, public


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_examples_in_docstrings(path):
    if path.name == "__main__.py":
        return
    dotted = f"keras_vjepa.{module_name(path)}".rstrip(".")
    assert doctest.testmod(importlib.import_module(dotted)).failed == 0
