"""Which underscore names are Keras' own, and where Python source uses them."""

import ast
import collections
import doctest
import functools
import pathlib

import keras

ROOT = pathlib.Path(keras.__file__).parent
_OF_ATTRIBUTES = {"getattr", "setattr", "hasattr", "delattr", "attrgetter"}


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def names_by_class():
    """Return the underscore names that each class of Keras has, by module and name.

    Under `None` stand those that Keras sets on objects of any other class.
    """
    found = collections.defaultdict(set)
    for path in (ROOT / "src").rglob("*.py"):
        if not path.name.endswith("_test.py"):
            module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
            _collect(ast.parse(path.read_text()), module, None, found)
    return found


@functools.cache
def keras_names():
    """Return all underscore names that Keras gives to objects."""
    return frozenset().union(*names_by_class().values())


def _collect(node, module, of, found):
    """Add the underscore names of methods, attributes and settings in source."""
    name = None
    if isinstance(node, ast.ClassDef):
        of = (module, node.name)
        found[of] |= {name for each in node.body for name in _defined(each)}
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        name = node.attr
    elif isinstance(node, ast.Call) and _last_name(node.func).endswith("attr"):
        name = next((getattr(each, "value", None) for each in node.args[1:2]), None)
    if isinstance(name, str) and is_private(name):
        found[of].add(name)
    for each in ast.iter_child_nodes(node):
        _collect(each, module, of, found)


def _defined(node):
    """Return the underscore names that a statement of a class defines."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    names = [getattr(node, "name", ""), *(_last_name(each) for each in targets)]
    return [name for name in names if is_private(name)]


def _last_name(node):
    """Return `b` of `a.b` and of `b`."""
    return getattr(node, "attr", getattr(node, "id", ""))


def private_uses(source, classes=None):
    """Return (line, use) of every private name of Keras that Python source uses.

    Imports of `keras.src`, and attributes with a private name of a Keras class, in
    examples of docstrings, too. The source's own classes may have such a name on `self`
    if they do not inherit it from Keras.

    Args:
        source: Text of a module.
        classes: Definitions of the classes that it may derive from, by name.
    """
    tree = ast.parse(source)
    classes = classes or classes_in(tree)
    visitor = _Uses(classes)
    visitor.visit(tree)
    return visitor.found


def classes_in(tree):
    """Return the class definitions of source, by name."""
    return {
        each.name: each for each in ast.walk(tree) if isinstance(each, ast.ClassDef)
    }


def _names_above(node, classes):
    """Return the underscore names of Keras' classes above a class of ours."""
    names = set()
    for base in node.bases:
        dotted = ast.unparse(base)
        own = classes.get(dotted.rpartition(".")[2])
        if own is not None and own is not node:
            names |= _names_above(own, classes)
        else:
            names |= _names_of_kind(_resolve(dotted))
    return names


def _resolve(dotted):
    found = keras
    for part in dotted.removeprefix("keras.").split("."):
        found = getattr(found, part, None)
    return found


def _names_of_kind(kind):
    if not isinstance(kind, type):
        return set()
    above = {(each.__module__, each.__name__) for each in kind.__mro__}
    if issubclass(kind, keras.Model):  # Which Keras makes functional models of.
        above.add(("keras.src.models.functional", "Functional"))
        above.add(("keras.src.ops.function", "Function"))
    return set().union(*(names_by_class()[each] for each in above))


class _Uses(ast.NodeVisitor):
    def __init__(self, classes):
        self.classes = classes
        self.above = set()  # Names of Keras' classes above the class that is read.
        self.found = []

    def note(self, node, use):
        self.found.append((node.lineno, use))

    def visit_Import(self, node):
        for alias in node.names:
            if alias.name.startswith("keras.src"):
                self.note(node, alias.name)

    def visit_ImportFrom(self, node):
        names = {f"{node.module}.{alias.name}" for alias in node.names}
        for name in sorted(names):
            if name.startswith("keras.src") or (
                name.startswith("keras.") and is_private(name.rpartition(".")[2])
            ):
                self.note(node, name)

    def visit_ClassDef(self, node):
        before, self.above = self.above, _names_above(node, self.classes)
        for each in node.body:
            if getattr(each, "name", None) in self.above:
                self.note(each, f"{node.name}.{each.name}")
        self._read_docstring(node)
        self.generic_visit(node)
        self.above = before

    def visit_FunctionDef(self, node):
        self._read_docstring(node)
        self.generic_visit(node)

    def visit_Module(self, node):
        self._read_docstring(node)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        if not (node.attr.startswith("_") or node.attr == "src"):
            self.generic_visit(node)
            return
        receiver = ast.unparse(node.value)
        names = self.above if receiver in ("self", "cls", "super()") else keras_names()
        set_class = node.attr == "__class__" and isinstance(node.ctx, ast.Store)
        if node.attr in names or set_class or f"{receiver}.{node.attr}" == "keras.src":
            self.note(node, f"{receiver}.{node.attr}")
        self.generic_visit(node)

    def visit_Call(self, node):
        if _last_name(node.func) in _OF_ATTRIBUTES:
            for each in node.args:
                self._read_key(node, each)
        self.generic_visit(node)

    def visit_Subscript(self, node):
        value = node.value
        called = _last_name(value.func) if isinstance(value, ast.Call) else ""
        if called == "vars" or _last_name(value) == "__dict__":
            self._read_key(node, node.slice)
        self.generic_visit(node)

    def _read_key(self, node, key):
        if isinstance(key, ast.Constant) and key.value in keras_names():
            self.note(node, ast.unparse(node))

    def _read_docstring(self, node):
        text = ast.get_docstring(node) or ""
        for example in doctest.DocTestParser().get_examples(text):
            self.found += [
                (node.body[0].lineno, use)
                for _, use in private_uses(example.source, self.classes)
            ]
