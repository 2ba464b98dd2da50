"""The house's rules: who may import whom, who may name a backend, what is public."""

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import pytest
from conftest import ROOT

import keras_vjepa

PACKAGE = ROOT / "keras_vjepa"
MODULES = sorted(PACKAGE.rglob("*.py"))
CODE = MODULES + sorted((ROOT / "recipes").glob("*.py")) + sorted((ROOT / "tools").glob("*.py"))
BACKENDS = {"jax", "torch", "tensorflow"}

# A module may import from floors below its own.
FLOORS = {
    "accumulation": 0,
    "attention": 0,
    "token_ops": 0,
    "updates": 0,
    "recording": 0,
    "distribution": 0,
    "downloads": 0,
    "rotary": 0,
    "presets": 0,
    "monitoring": 0,
    "prediction": 1,
    "readouts": 0,
    "checkpointing": 1,
    "layers": 1,
    "optimization": 1,
    "backbone": 2,
    "predictor": 2,
    "pretrainer": 3,
    "probe": 3,
    "classifier": 4,
    "checkpoints": 5,
    "preprocessor": 5,
    "zoo": 6,
}
# Where files become a model's input.
MAY_READ_DATA = {"preprocessor"}
MAY_IMPORT_A_BACKEND = {
    "accumulation.py",
    "attention.py",
    "distribution.py",
    "prediction.py",
    "recording.py",
    "token_ops.py",
    "updates.py",
}


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
    return names


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").glob("*.py")), ids=name)
def test_the_data_side_knows_no_model(path):
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & (BACKENDS | {"keras"})
    ours = {module for module in imports(path) if module.startswith("keras_vjepa")}
    assert all(module.startswith("keras_vjepa.data") for module in ours)


@pytest.mark.parametrize("path", [path for path in MODULES if path.parent.name != "data"], ids=name)
def test_imports_point_down(path):
    found = imports(path)
    assert not any(module.split(".")[0] in {"recipes", "tools", "tests"} for module in found)
    if path == PACKAGE / "__init__.py":
        return
    floor = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in found:
        if module.startswith("keras_vjepa."):
            below = module.split(".")[1]
            if below == "data":
                assert floor in MAY_READ_DATA, "the batch is the only contract"
                continue
            assert FLOORS[below] <= FLOORS[floor], f"{floor} imports {below}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_backend_names_in_model_code(path):
    if path.name not in MAY_IMPORT_A_BACKEND:
        assert not {module.split(".")[0] for module in imports(path)} & BACKENDS
    if path.name in MAY_IMPORT_A_BACKEND:
        return
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


@pytest.mark.parametrize("path", MODULES, ids=name)
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
    module = importlib.import_module(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    )
    assert doctest.testmod(module).failed == 0
