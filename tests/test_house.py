"""The house is as CONTRIBUTING.md draws it, and imports run one way, downwards."""

import ast
import importlib
import pathlib
import re

import pytest

from .conftest import ROOT
from .keras_names import classes_in, private_uses

pytestmark = pytest.mark.once
PACKAGE = "keras_selfdistill"
HOUSE = ROOT / PACKAGE
FOLDERS = sorted(path.parent for path in HOUSE.rglob("__init__.py"))


def rooms():
    """Return the packages and modules that are drawn, from the top down."""
    drawn = (ROOT / "CONTRIBUTING.md").read_text()
    drawn = drawn[drawn.index(f"{PACKAGE}/\n") : drawn.index("\ntests/")]
    return re.findall(r"^  (\w+)(?:/|\.py)", drawn, re.MULTILINE)


def imports(path):
    """Yield (module, name) of every import from the package, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import"
            if node.module.split(".")[0] == PACKAGE:
                for alias in node.names:
                    yield node.module, alias.name


def room_of(module, name):
    """Return the room that an import leads to."""
    inside = module.split(".")[1:]
    return inside[0] if inside else name


def test_every_room_is_drawn():
    there = {path.stem for path in HOUSE.glob("[!_]*") if path.name != "py.typed"}
    assert sorted(rooms()) == sorted(there)


@pytest.mark.parametrize("room", rooms())
def test_a_room_imports_only_from_those_below_it(room):
    order = rooms()
    files = [*HOUSE.glob(f"{room}.py"), *HOUSE.glob(f"{room}/**/*.py")]
    assert files
    for path in files:
        for module, name in imports(path):
            target = room_of(module, name)
            if target not in (room, "_keras_version"):
                below = order[order.index(room) + 1 :]
                assert target in below, f"{path.name} imports {module}.{name}"


def test_no_private_name_leaves_its_package():
    for path in HOUSE.rglob("*.py"):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        for module, name in imports(path):
            private = name.startswith("_") and name != "_keras_version"
            assert not private or room_of(module, name) == room, f"{path}: {name}"


def test_no_module_imports_itself_in_a_circle():
    """Modules of one package, too, can be put in an order."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in HOUSE.rglob("*.py")
        if path.name != "__init__.py"
    }
    needs = {
        module: {
            target
            for source, name in imports(path)
            for target in (source, f"{source}.{name}")
            if target in modules
        }
        for module, path in modules.items()
    }
    while needs:
        free = {module for module, others in needs.items() if not others}
        assert free, f"a circle among {sorted(needs)}"
        needs = {m: others - free for m, others in needs.items() if m not in free}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_a_package_is_small_and_says_what_it_is(folder):
    module = importlib.import_module(".".join(folder.relative_to(ROOT).parts))
    top = module.__name__ == PACKAGE
    assert top or re.search(r"Public:|Internal\.|internal", module.__doc__)
    assert module.__all__
    assert set(module.__all__) <= {*vars(module), *(p.stem for p in folder.iterdir())}
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= 10


def lines_of_code(node):
    """Return how many lines a definition has, without its docstrings."""
    docstrings = [
        each.body[0]
        for each in ast.walk(node)
        if isinstance(each, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(each)
    ]
    return (
        node.end_lineno
        - node.lineno
        + 1
        - sum(each.end_lineno - each.lineno + 1 for each in docstrings)
    )


def test_modules_classes_and_functions_are_short():
    for path in HOUSE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 300, f"{path}: split it"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert lines_of_code(node) <= 50, f"{path}: {node.name}"
            if isinstance(node, ast.ClassDef):
                assert lines_of_code(node) <= 350, f"{path}: {node.name}"


@pytest.mark.parametrize("place", ["benchmarks", "examples"])
def test_commands_stand_at_the_top_and_their_parts_in_packages(place):
    folders = {path.parent for path in (ROOT / place).rglob("*.py")}
    assert len(folders) > 1
    for folder in folders:
        modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert 1 <= len(modules) <= 10
        for module in modules:
            runs = 'if __name__ == "__main__":' in module.read_text()
            assert runs == (folder == ROOT / place), module
        if folder != ROOT / place:
            package = ast.parse((folder / "__init__.py").read_text())
            assert ast.get_docstring(package), folder


def test_every_package_of_the_house_has_its_tests():
    tests = pathlib.Path(__file__).parent
    packages = {path.parent.name for path in HOUSE.glob("*/__init__.py")}
    # Data, quality and reliability are tested by the reports made of them.
    assert packages - {"evaluation"} <= {path.name for path in tests.iterdir()}


INTERNALS = ("utils/keras_internals.py", "graph/nodes.py")


def python_sources():
    """Yield (path, text) of all code that users run or read, but for the tests."""
    for folder in (HOUSE, *(ROOT / each for each in ("benchmarks", "examples"))):
        for path in folder.rglob("*.py"):
            yield path, path.read_text()
    for path in (ROOT / "tutorials").rglob("*.py"):
        yield path, path.read_text()
    for path in (*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")):
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            yield path, block


def test_no_other_module_uses_private_names_of_keras():
    sources = list(python_sources())
    assert len(sources) > 200
    classes = {}
    for _, text in sources:
        classes |= classes_in(ast.parse(text))
    found = [
        (path.relative_to(ROOT), use)
        for path, text in sources
        for use in private_uses(text, classes)
    ]
    inside = {pathlib.Path(PACKAGE, each) for each in INTERNALS}
    assert inside <= {path for path, _ in found}
    uses = [(str(path), use) for path, use in found if path not in inside]
    assert not uses, f"move into {INTERNALS}, one small function each: {uses}"


PLANTED = {
    "import keras.src.backend": "keras.src.backend",
    "from keras.src.utils import naming": "keras.src.utils.naming",
    "from keras import src": "keras.src",
    "keras.src.ops.numpy": "keras.src",
    "name = tensor._keras_history.operation.name": "tensor._keras_history",
    "model._initial_epoch = 3": "model._initial_epoch",
    "mask = getattr(x, '_keras_mask', None)": "getattr(x, '_keras_mask', None)",
    "options = vars(loss)['_fn_kwargs']": "vars(loss)['_fn_kwargs']",
    "layer.__class__ = Other": "layer.__class__",
    "class A(keras.Model):\n    def f(self):\n        return self._loss_tracker": (
        "self._loss_tracker"
    ),
    "class A(keras.Model):\n    def _run_through_graph(self): ...": (
        "A._run_through_graph"
    ),
    "class A(keras.Layer): ...\nclass B(A):\n    def f(self):\n"
    "        return [super()._layers for _ in range(2)]": "super()._layers",
    "def f():\n    '''Do.\n\n    >>> dense._inbound_nodes\n    []\n    '''": (
        "dense._inbound_nodes"
    ),
}
INNOCENT = """
class Plain:
    def __init__(self, model):
        self._model, self._lock = model, None

class Metric(keras.Metric):
    def result(self):
        return self._model

checkpoint._replace(epoch=1)
wrapper._graph.exits
getattr(x, "_own")
"""


@pytest.mark.parametrize("source", PLANTED)
def test_a_planted_private_name_of_keras_is_found(source):
    assert PLANTED[source] in [use for _, use in private_uses(source)]


def test_our_own_private_names_are_allowed():
    assert private_uses(INNOCENT) == []
