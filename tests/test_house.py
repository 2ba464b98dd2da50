"""The house's rules: who may import whom, who may name a backend, sizes, what is public."""

import ast
import doctest
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path
from statistics import median

import keras
import pytest

import keras_vjepa
from tests import seam
from tests.support import ROOT

# These run once, because the rules read source code, and examples in docstrings are the same on
# each backend.
pytestmark = pytest.mark.data

PACKAGE = ROOT / "keras_vjepa"
MODULES = sorted(PACKAGE.rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
CODE = MODULES + RECIPES + TOOLS
TESTS = sorted((ROOT / "tests").rglob("*.py"))

# The floors, lowest first. A module belongs to the longest name here that its own name begins with.
# It may import from lower floors and from its own folder.
FLOORS = (
    "types",
    "arguments",
    "files",
    "json_files",
    "named_errors",
    "zip_archives",
    "locks",
    "configuration",
    "command_line",
    "data.random_streams",
    "data.reading",
    "data.processes",
    "data.sources",
    "data.transforms",
    "data.batches",
    "data.preparation",
    "data",
    "backend",
    "layers",
    "presets",
    "models",
    "training",
    "tasks",
    "monitoring.spectra",
    "monitoring.statistics",
    "evaluation",
    "monitoring",
    "preprocessor",
    "evaluation_pixels",
    "pictures",
    "pretraining_check",
    "fine_tuning_check",
    "fine_tuning",
    "decoding",
    "conversion",
    "zoo",
    "zoo_rivals",
    "verification",
    "",
    "recipes",
    "tools",
    "__main__",
)
# The model side knows nothing of data but the batch.
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
        elif seam.dotted(node).startswith("keras_vjepa."):
            names.add(seam.dotted(node))  # an attribute of an imported module
    return names


def imported_modules(source: str) -> set[str]:
    """Modules of the package that a file imports, as `module_name` has them."""
    known = {module_name(path) for path in CODE}
    found = set()
    for name in imports(source):
        if name.split(".")[0] != "keras_vjepa":
            continue
        inner = name.removeprefix("keras_vjepa").lstrip(".")
        # The name may be a module, or something that a module contains.
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
    assert upward_imports("layers.dense", "keras_vjepa.models.backbone.SIZES")
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
    assert not roots & (seam.BACKENDS | {"keras"})


@pytest.mark.parametrize(
    "path", [p for p in MODULES if module_name(p).startswith(KNOW_NO_DATA)], ids=name
)
def test_the_model_side_knows_no_data(path):
    assert not {m for m in imported_modules(path.read_text()) if m.split(".")[0] == "data"}


# These files are plain torch, which is timed beside the package.
OUTSIDE_THE_SEAM = [
    p for p in CODE if p.parent.name != "backend" and not p.name.startswith("plain_torch_")
]


@functools.cache
def telling() -> set[str]:
    """What in backend/ says which engine runs."""
    return seam.telling_names(p.read_text() for p in sorted((PACKAGE / "backend").glob("*.py")))


@pytest.mark.parametrize("path", OUTSIDE_THE_SEAM, ids=name)
def test_only_the_seam_knows_which_engine_runs(path):
    assert seam.engine_questions(path.read_text(), telling()) == []


QUESTIONS = (
    "import torch",
    "from jax import numpy",
    "kind = 'torch'",
    "from keras_vjepa.backend.disguised import waits",
    "from keras_vjepa.backend import disguised\nif disguised.IS_COMPILED: pass",
    "backend = keras.config.backend()",
    "backend = keras.backend.backend()",
    "from keras_vjepa.backend import engine\nif engine.name().startswith('t'): pass",
    "chosen = {}[engine.name()]",
    "name = engine.name()\nfast = name in kinds",
    "def train_step(self, *args):\n    if len(args) == 1: pass",
    "def train_step(self, *args):\n    n = len(args)\n    if n == 1: pass",
    "def train_step(self, *args):\n    if args[1:]: pass",
    "def train_step(self, *args):\n    match args:\n        case [x]: pass",
    "def train_step(self, *args):\n    state, *rest = args\n    if rest: pass",
    "from keras.config import backend as which\nx = which()",
    "from keras import config\nb = config.backend()",
    "from keras.backend import backend",
    "import keras.config as known",
    "kind = getattr(keras.config, 'back' + 'end')()",
    "step = STEPS.get(engine.name())",
    "if type(x).__module__.startswith('to'): pass",
    "kind = type(x).__module__",
    "if hasattr(x, 'detach'): pass",
    "at = getattr(x, 'at', None)",
    "step = getattr(self, f'_step_{engine.name()}')",
    "kind: str = engine.name()",
    "one, kind = 1, engine.name()",
    "self.kind = engine.name()",
    "def f(kind=engine.name()): pass",
    "helper(engine.name_and_version())",
    "from keras_vjepa.backend.engine import name",
    "from keras_vjepa.backend import engine as e",
    "kind = os.environ['KERAS_BACKEND']",
)


def test_a_question_for_the_engine_is_found():
    """By its name, by what a function of the seam returns, and by what differs between engines."""
    disguised = """
import keras
def needs_copies():
    engine = keras.config.backend()
    return engine == "torch"
def waits(): return not needs_copies()
def number_of_kernels():
    if keras.config.backend() == "torch":
        return 2
    return 1
IS_COMPILED = keras.config.backend() != "torch"
def norm(x):
    if needs_copies():
        return fused(x)
    return plain(x)
"""
    told = seam.telling_names([disguised])
    assert told == {"needs_copies", "waits", "number_of_kernels", "IS_COMPILED"}
    for planted in QUESTIONS:
        assert seam.engine_questions(planted, told), planted
    for allowed in (
        "from keras_vjepa.backend.disguised import norm",
        "metadata = {'engine': engine.name()}",
        "def f(*arrays):\n    return len(arrays)",
        "def f(*kinds):\n    return kinds or ('video',)",
        '"""Run it with KERAS_BACKEND=..."""',
        "row = {'module': cls.__module__}",
    ):
        assert not seam.engine_questions(allowed, told), allowed


# Packages that the code may import where they are installed, besides Python's own modules and the
# engines.
PACKAGES = {
    *("keras", "keras_vjepa", "numpy", "cv2", "h5py", "av", "ml_dtypes", "PIL", "decord", "grain"),
    *("huggingface_hub", "kagglehub", "safetensors", "onnxruntime", "matplotlib"),
    *("tensorboardX",),
    *("fsspec", "pyarrow"),
}


def foreign_packages(source: str) -> set[str]:
    roots = {name.split(".")[0] for name in imports(source)}
    return roots - PACKAGES - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", OUTSIDE_THE_SEAM, ids=name)
def test_no_module_is_imported_unseen(path):
    assert foreign_packages(path.read_text()) == set()
    if path.name != "__main__.py":
        assert seam.modules_by_name(path.read_text()) == []


def test_a_module_that_is_imported_unseen_is_found():
    for planted in (
        "import jaxlib",
        "from torchvision import io",
        "import tf_keras",
        "import flax",
    ):
        assert len(foreign_packages(planted)) == 1
    for planted in (
        "importlib.import_module('keras_vjepa.models.backbone')",
        "import_module('to' + 'rch')",
        "__import__('keras_vjepa.models')",
        "importlib.util.find_spec('jax')",
        "if 'a' in sys.modules: pass",
    ):
        assert len(seam.modules_by_name(planted)) == 1, planted
    assert not seam.modules_by_name("importlib.util.find_spec('av')")


def test_the_seam_itself_tells():
    """Else the rule above would look for nothing."""
    assert "runs_op_by_op" in telling()


def foreign_private_names() -> set[str]:
    """Private attributes of what one derives from in Keras."""
    made = [
        keras.Model(),
        keras.layers.Layer(),
        keras.optimizers.SGD(),
        keras.metrics.Mean(),
        keras.callbacks.Callback(),
    ]
    return {attribute for item in made for attribute in dir(item) if seam.is_private(attribute)}


@pytest.fixture(scope="module")
def private_names():
    sources = [path.read_text() for path in CODE]
    return (
        seam.own_private_names(sources),
        foreign_private_names(),
        seam.classes_of_keras(sources),
    )


@pytest.mark.parametrize("path", [p for p in CODE if p.name != "keras_internals.py"], ids=name)
def test_private_names_of_keras_stand_in_one_file(path, private_names):
    assert seam.private_uses(path.read_text(), *private_names) == []


def test_a_private_name_of_keras_is_found(private_names):
    own, foreign, of_keras = private_names
    assert {"VJEPAPretrainer", "AdamW", "SweepAdamW"} <= of_keras
    assert seam.classes_of_keras(["from keras import Model as M\nclass A(M): pass"]) == {"A"}
    for planted in (
        "from keras.src.backend import config",
        "from torch._utils import something",
        "model._loss_tracker.reset_state()",
        "torch._foreach_add_(a, b)",
        "getattr(layer, '_layers')",
        "vars(layer)['_layers']",
        "layer.__dict__['_layers']",
        "operator.attrgetter('_layers')(layer)",
        "object.__getattribute__(layer, '_layers')",
        "delattr(layer, '_layers')",
        "import keras\nkeras.src.backend.config",
        "class AdamW(keras.optimizers.Optimizer):\n    def _get_variable_index(self): pass",
    ):
        assert seam.private_uses(planted, own, foreign, of_keras), planted
    for allowed in (
        "model._something_of_ours",
        "class AdamW(keras.optimizers.Optimizer):\n    def _something_of_ours(self): pass",
        "class Reader:\n    _name = 'a name that Keras has too'",
    ):
        ours = own | {"_something_of_ours"}
        assert not seam.private_uses(allowed, ours, foreign, of_keras), allowed


def shortcuts(source: str) -> list[str]:
    """Imports of a file of this repository by its bare name, and additions to Python's path.

    Both work from one folder only, and let one file be two modules.
    """
    own = {path.stem for path in CODE + TESTS} - seam.BACKENDS - set(sys.stdlib_module_names)
    found = [name for name in imports(source) if name.split(".")[0] in own]
    changes = ("sys.path.", "site.addsitedir")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(changes):
            found.append(ast.unparse(node))
        elif isinstance(node, ast.Assign | ast.AugAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [ast.unparse(node) for t in targets if ast.unparse(t).startswith("sys.path")]
    return found


@pytest.mark.parametrize("path", CODE + TESTS, ids=name)
def test_no_shortcuts(path):
    assert shortcuts(path.read_text()) == []
    assert "pythonpath" not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "planted",
    [
        "import pretrain_configs",
        "from support import ROOT",
        "def f():\n    from bench import make_batch",
        "sys.path.insert(0, 'recipes')",
        "sys.path += ['tools']",
        "sys.path[:0] = ['tools']",
        "site.addsitedir('tools')",
    ],
)
def test_a_shortcut_is_found(planted):
    assert len(shortcuts(planted)) == 1


# Functions that write, and the argument that they write to (0 is the first). "self" is the object
# before the dot. With a second argument such as "w", any function counts as writing to its first
# argument.
WRITES = {
    "write_text": "self",
    "write_bytes": "self",
    "touch": "self",
    "symlink_to": "self",
    "hardlink_to": "self",
    "rename": 0,
    "os.rename": 1,
    "os.replace": 1,
    "os.link": 1,
    "os.open": 0,
    "shutil.move": 1,
    "shutil.copy": 1,
    "shutil.copy2": 1,
    "shutil.copyfile": 1,
    "shutil.copytree": 1,
    "np.save": 0,
    "np.savez": 0,
    "np.savez_compressed": 0,
    "np.savetxt": 0,
    "tofile": 0,
    "cv2.imwrite": 0,
    "cv2.VideoWriter": 0,
    "save_weights": 0,
    "save_model": 1,
    "save_file": 1,
    "json.dump": 1,
    "pickle.dump": 1,
    "torch.save": 1,
    "numpy.save": 0,
    "np.memmap": 0,
    "os.truncate": 0,
    "os.symlink": 1,
    "shutil.copyfileobj": 1,
    "logging.FileHandler": 0,
    "tempfile.mkdtemp": 0,
    "tempfile.mkstemp": 0,
    "tempfile.NamedTemporaryFile": 0,
}
# Functions of `files.py` that lend a path, and functions that do so with it.
LENT, LENDERS = (
    {"unfinished", "scratch"},
    {"unfinished_file", "unfinished_folder", "scratch_folder", "continued_file"},
)
# A log that is read while another process writes it, and a lock, which is an open file.
WRITTEN_OPENLY = {
    ("tools.check_resume", "self.output"),
    ("locks", "path"),
    # These are in the system's temporary folder, and are deleted with it.
    ("data.reading.opencv_decoder", "link"),
    ("data.reading.lent_files", "path"),
}


def target_of(call: ast.Call) -> ast.expr | None:
    """What a call writes to, None if it does not write."""
    called = ast.unparse(call.func)
    if called.startswith("files."):
        return None
    positional = dict(enumerate(call.args))
    mode = positional.get(1, next((k.value for k in call.keywords if k.arg == "mode"), None))
    method = isinstance(call.func, ast.Attribute)
    if method and call.func.attr == "open" and called != "os.open" and len(call.args) == 1:
        mode = mode or call.args[0]  # as in path.open("w")
        positional = {0: call.func.value}
    place = WRITES.get(called, WRITES.get(called.rpartition(".")[2]) if method else None)
    if method and call.func.attr == "replace" and len(call.args) == 1 and not call.keywords:
        place = 0  # of a path; those of a text or dataclass have more arguments
    if called == "tempfile.TemporaryDirectory" and any(k.arg == "dir" for k in call.keywords):
        return call
    if isinstance(mode, ast.Constant) and re.fullmatch(
        r"[bt]*[wax][bt+]*|r[bt]*\+[bt]*", str(mode.value)
    ):
        place = 0 if place is None else place
    if place is None:
        return None
    return call.func.value if place == "self" else positional.get(place, call)


def root_of(path: ast.expr) -> str:
    """The name that an expression of a path begins with: `folder` of `str(folder / "a")`."""
    while not isinstance(path, ast.Name):
        if isinstance(path, ast.BinOp):
            path = path.left
        elif isinstance(path, ast.Call) and ast.unparse(path.func) in ("str", "Path", "os.fspath"):
            path = path.args[0]
        elif isinstance(path, ast.Attribute):
            path = path.value
        else:
            return ast.unparse(path)
    return path.id


def borrowed(node: ast.AST) -> list[ast.expr]:
    """The names that a statement gives to paths that `files.py` lends."""
    if isinstance(node, ast.With):
        calls = [item for item in node.items if isinstance(item.context_expr, ast.Call)]
        lent = [c for c in calls if ast.unparse(c.context_expr.func).split(".")[-1] in LENDERS]
        return [item.optional_vars for item in lent if item.optional_vars is not None]
    if isinstance(node, ast.Assign) and root_of(node.value) in LENT:
        return node.targets
    return []


def open_writes(module: str, source: str) -> list[str]:
    """Lines of a file that write elsewhere than to what `files.py` lends."""
    nodes = list(ast.walk(ast.parse(source)))
    lent = {id(name) for node in nodes for name in borrowed(node)}
    found = []
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            wrong = node.id in LENT and id(node) not in lent
        elif isinstance(node, ast.ImportFrom):
            wrong = any(f"{node.module}.{alias.name}" in WRITES for alias in node.names)
            wrong |= node.module in ("tempfile", "shutil", "numpy", "cv2")
        elif isinstance(node, ast.Call) and (target := target_of(node)) is not None:
            allowed = (module, ast.unparse(target)) in WRITTEN_OPENLY
            wrong = root_of(target) not in LENT and not allowed
        else:
            continue
        if wrong:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", [p for p in CODE if module_name(p) != "files"], ids=name)
def test_one_writer(path):
    assert open_writes(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    "planted",
    [
        "path.write_text('a')",
        "(folder / 'a').write_bytes(b'a')",
        "open(path, 'w')",
        "open(file=path, mode='ab')",
        "path.open('r+b')",
        "np.savez(path, a=1)",
        "cv2.imwrite(str(folder / 'a.png'), image)",
        "os.replace(unfinished, path)",
        "unfinished.rename(path)",
        "temporary.replace(path)",
        "zipfile.ZipFile(path, 'w')",
        "model.save_weights(path)",
        "tempfile.mkdtemp(dir=folder)",
        "json.dump(content, opened)",
        "np.memmap(path, 'f4', 'w+')",
        "os.symlink(path, other)",
        "logging.FileHandler(path)",
        "tempfile.TemporaryDirectory(dir=folder)",
        "from os import replace",
        "from tempfile import mkdtemp",
        "unfinished = folder / 'a'",
        "with somebody.lends(folder) as unfinished: pass",
    ],
)
def test_a_second_writer_is_found(planted):
    assert len(open_writes("tasks.probe", planted)) == 1
    assert len(open_writes("tools.check_resume", planted)) == 1


def test_what_files_lends_may_be_written():
    source = """
with files.scratch_folder(folder) as scratch, files.unfinished_file(path) as unfinished:
    np.savez(unfinished, a=1)
    (unfinished / 'a').write_text(text.replace('a', 'b'))
    unfinished = scratch / 'b'
    np.lib.format.open_memmap(unfinished, 'w+', dtype, shape)
    with open(path, 'rb') as file, tempfile.TemporaryDirectory() as elsewhere:
        changed = dataclasses.replace(config, a=1)
"""
    assert open_writes("tasks.probe", source) == []


# --- Sizes: what fits on a screen ----------------------------------------------------------------


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]


def long_functions(source: str) -> list[str]:
    """Names of functions of more than 60 lines."""
    return [f.name for f in functions(source) if f.end_lineno - f.lineno + 1 > 60]


@pytest.mark.parametrize("path", CODE + TESTS, ids=name)
def test_functions_fit_on_a_screen(path):
    assert long_functions(path.read_text()) == []


def test_a_long_function_is_found():
    body = "    pass\n"
    assert long_functions("class C:\n  async def f(self):\n" + 60 * body) == ["f"]
    assert long_functions("def f():\n" + 59 * body) == []


def functions_without_a_type(source: str) -> list[str]:
    return [f.name for f in functions(source) if f.returns is None]


@pytest.mark.parametrize("path", CODE, ids=name)
def test_functions_are_annotated(path):
    assert functions_without_a_type(path.read_text()) == []


def test_a_function_without_a_type_is_found():
    assert functions_without_a_type("def f(): ...\ndef g() -> int: ...") == ["f"]


def lengths(paths: list[Path]) -> dict[str, int]:
    return {name(path): len(path.read_text().splitlines()) for path in paths}


def unbalanced(code: dict[str, int], tests: dict[str, int]) -> list[str]:
    """What is wrong with the lengths of files, in words."""
    found = [
        f"the median file of {what} must have at most 200 lines"
        for what, counts in (("the package", code), ("the tests", tests))
        if median(counts.values()) > 200
    ]
    if sum(tests.values()) < 0.62 * sum(code.values()):
        found.append("there must be at least 62 lines of tests for 100 of code")
    return found


def test_files_are_short_and_tested():
    assert unbalanced(lengths(CODE), lengths(TESTS)) == []


def test_long_files_and_few_tests_are_found():
    assert "package" in unbalanced({"a": 201}, {"b": 200})[0]
    assert "the tests" in unbalanced({"a": 200}, {"b": 201})[0]
    assert "62 lines" in unbalanced({"a": 200}, {"b": 123})[0]
    assert unbalanced({"a": 200}, {"b": 124}) == []


def oversized_recipes(counts: dict[str, int]) -> list[str]:
    """Recipes that are more than a page, and `recipes` when they are too much together.

    1,600 lines were what pretraining and the frozen evaluations took after the move; fine-tuning,
    detection and the decoder came later, each with a page for the configs and one for the run, and
    V-JEPA 2.1 with its configs.
    """
    found = [recipe for recipe, count in counts.items() if count > 250]
    return found + (["recipes"] if sum(counts.values()) > 2800 else [])


def test_a_recipe_is_a_page():
    assert oversized_recipes(lengths(RECIPES)) == []


def test_an_oversized_recipe_is_found():
    assert oversized_recipes({"a": 250, "b": 251}) == ["b"]
    assert oversized_recipes({str(i): 235 for i in range(12)}) == ["recipes"]


# --- What is public ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__main__.py"], ids=name)
def test_modules_name_their_sections(path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring
    if path.name != "__init__.py":
        head = docstring.split("\n\n")[:2]
        assert "§" in " ".join(head) or "App." in " ".join(head), path


# Public names of the package ("") and of each of its folders. All others are private.
PUBLIC: dict[str, set[str]] = {
    "": {
        "AdamW",
        "AttentivePooler",
        "CosineSchedule",
        "FeatureDecoder",
        "FineTuningSchedule",
        "LinearSchedule",
        "VJEPAActionDetector",
        "VJEPABackbone",
        "VJEPAPredictor",
        "VJEPAPretrainer",
        "VJEPAProbe",
        "VJEPAVideoClassifier",
        "VJEPAVideoPreprocessor",
        "WarmupCosine",
        "__version__",
        "data",
        "evaluation",
        "list_presets",
        "training",
        "upload_preset",
    },
    "conversion": {
        "FAMILIES",
        "CheckpointError",
        "convert",
        "convert_backbone",
        "convert_classifier",
        "convert_preprocessor",
        "convert_probe",
        "export_checkpoint",
        "export_hugging_face",
        "export_probe",
    },
    "data": {
        "AutoAugment",
        "CausalMultiBlockMask",
        "ClipBatches",
        "ClipSettings",
        "DirectoryData",
        "EvaluationBatches",
        "FineTuningBatches",
        "ImageProbeTransform",
        "LabelledBatches",
        "MaskSampler",
        "Mixing",
        "MultiBlockMask",
        "PretrainTransform",
        "RandAugment",
        "RandomTokenMask",
        "RandomTubeMask",
        "ReadingLimits",
        "Sample",
        "VideoProbeTransform",
        "VideosAndImages",
        "center_view",
        "from_directory",
        "list_samples",
        "mean_counts",
        "paper_masks",
        "three_views",
    },
    "evaluation": {
        "ComparedEncoder",
        "DetectionScores",
        "EncoderComparison",
        "Evaluator",
        "FeatureExtractor",
        "FrozenProbe",
        "LabelledClips",
        "ProbeSettings",
        "ProbeSweep",
        "Split",
        "SweepAdamW",
        "accuracies",
        "cached_features",
        "comparison_table",
        "confusion_matrix",
        "draw_confusion",
        "features_in_memory",
        "make_split",
        "mean_and_deviation",
        "mean_average_precision",
        "nearest_neighbors",
        "read_labelled_clips",
        "ridge_classifier",
        "summary",
        "top_k",
    },
    "layers": {
        "AttentivePooler",
        "RoIAlign",
        "SelfAttention",
        "TokenDense",
        "TokenNorm",
        "TransformerBlock",
        "TubeletEmbedding",
        "gather_tokens",
        "make_rotations",
        "position_table",
        "resample_position_table",
        "rotate",
    },
    "models": {
        "SIZES",
        "DINOv2Backbone",
        "DeclaredBackbone",
        "EncoderSize",
        "FunctionalBackbone",
        "HieraBackbone",
        "IJEPABackbone",
        "KerasHubBackbone",
        "MVDBackbone",
        "OmniMAEBackbone",
        "OpenCLIPBackbone",
        "SavedModelBackbone",
        "TokenEncoder",
        "VJEPABackbone",
        "VJEPAPredictor",
        "VideoMAEBackbone",
        "VideoMAEv2Backbone",
        "VisionBackbone",
        "as_token_encoder",
        "register_adapter",
    },
    "monitoring": {
        "CollapseError",
        "FeatureStatistics",
        "LossCurve",
        "Monitor",
        "StepLog",
        "alpha_req",
        "channel_deviation",
        "covariance_rank",
        "damaged_curve",
        "feature_statistics",
        "lidar",
        "mean_cosine",
        "normalized_deviation",
        "power_law_exponent",
        "rank_me",
        "same_video_retrieval",
    },
    "pictures": {
        "FrameRow",
        "TokenState",
        "WatchedVideo",
        "check_picture_path",
        "encoder_attention",
        "nearest_videos",
        "patch_colours",
        "patch_features",
        "patch_similarity",
        "prediction_changes",
        "prediction_errors",
        "probe_attention",
        "read_watched",
        "surprise",
        "token_states",
        "write_rows",
    },
    "training": {
        "AdamW",
        "Checkpoints",
        "CosineSchedule",
        "FineTuningSchedule",
        "LinearSchedule",
        "LossLog",
        "RunCallback",
        "WarmupCosine",
        "run",
    },
}
ROOMS = [path.parent for path in MODULES if path.name == "__init__.py"]


def undeclared(exported: set[str], declared: set[str]) -> set[str]:
    """Names that are public on one side alone."""
    return exported ^ declared


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_the_public_api(room):
    module = importlib.import_module(name(room).replace("/", "."))
    exported = set(getattr(module, "__all__", ()))
    assert undeclared(exported, PUBLIC.get(module_name(room / "__init__.py"), set())) == set()
    for public in exported - {"__version__"}:
        documented = inspect.getdoc(getattr(module, public))
        assert documented, public
        if module is keras_vjepa and not inspect.ismodule(getattr(module, public)):
            assert "Example" in documented and "Args:" in documented, public


def test_a_name_that_became_public_is_found():
    assert undeclared({"fit", "new"}, {"fit", "gone"}) == {"new", "gone"}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_examples_in_docstrings(path):
    if path.name == "__main__.py":
        return
    dotted = f"keras_vjepa.{module_name(path)}".rstrip(".")
    assert doctest.testmod(importlib.import_module(dotted)).failed == 0
