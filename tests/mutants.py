"""Change the library a little, many times, and see whether the tests notice.

    python -m tests.mutants

prints the share of changes that fail a test, and those that do not: each must stand
in `tests/survivors.json`, with a reason. Texts of errors and docstrings stay as they
are.
"""

import argparse
import ast
import collections
import copy
import importlib
import importlib.machinery
import importlib.util
import json
import os
import pathlib
import random
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SURVIVORS = pathlib.Path(__file__).with_name("survivors.json")
PACKAGE = "keras_selfdistill"
MODULES = {
    "losses": ["losses.soft_target", "losses.hint", "losses.regression"],
    "recipes": [
        "recipes.exit_losses.deep_supervision",
        "recipes.exit_losses.byot",
        "recipes.exit_losses.attention_byot",
        "recipes.exit_losses.teskd",
        "recipes.registry",
    ],
    "taps": ["exits.named_taps"],
    "calibration": [
        "early_exit.thresholds.outcomes",
        "early_exit.thresholds.search",
    ],
}
# What has to notice a change of each module, quick ones first.
TESTS = {
    "losses": ["tests/losses/test_losses.py", "tests/training/test_objective.py"],
    "recipes": ["tests/recipes/test_recipes.py", "tests/training/test_objective.py"],
    "taps": ["tests/exits/test_named_taps.py", "tests/exits/test_taps.py"],
    "calibration": [
        "tests/early_exit/test_calibration.py",
        "tests/early_exit/test_latency_budget.py",
        "tests/costs/test_unknown_costs.py",
    ],
}
SECONDS = 30  # Of computing, after which a mutant counts as noticed: it hangs.

_COMPARED = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}
_COMPUTED = {
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div],
    ast.Div: [ast.Mult],
    ast.FloorDiv: [ast.Div],
    ast.Mod: [ast.Mult],
    ast.Pow: [ast.Mult],
    ast.BitOr: [ast.BitAnd],
    ast.BitAnd: [ast.BitOr],
}


def changes_of(node):
    """Yield nodes that could stand in the place of one."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for other in _COMPARED.get(type(operator), []):
                changed = copy.deepcopy(node)
                changed.ops[i] = other()
                yield changed
    elif isinstance(node, ast.BinOp):
        for other in _COMPUTED.get(type(node.op), []):
            yield ast.BinOp(node.left, other(), node.right)
    elif isinstance(node, ast.BoolOp):
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield ast.BoolOp(other(), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from map(ast.Constant, _other_values(node.value))
    elif isinstance(node, (ast.If, ast.IfExp)):
        for value in (True, False):
            changed = copy.deepcopy(node)
            changed.test = ast.Constant(value)
            yield changed
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr, ast.Raise)):
        yield ast.Pass()
    elif isinstance(node, ast.Call):
        for i in range(len(node.keywords)):
            changed = copy.deepcopy(node)
            del changed.keywords[i]
            yield changed


def _other_values(value):
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [value * 2 + 1]
    return [f"X{value}"] if isinstance(value, str) else []


def _sites(tree):
    """Yield (name of the function or class around, node) of what may be changed."""

    def walk(node, path):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            path = [*path, node.name]
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "type_params"):
                continue
            children = value if isinstance(value, list) else [value]
            for child in children:
                if isinstance(child, ast.AST) and not _is_text(child):
                    yield ".".join(path), child
                    # How an error is worded is nobody's promise; that it comes, is.
                    if not isinstance(child, ast.Raise):
                        yield from walk(child, path)

    yield from walk(tree, [])


def _is_text(node):
    """Tell docstrings, names for export, and imports."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return True
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def mutants_of(source):
    """Return (name, tree) of every mutant of a module's source."""
    count = sum(1 for _ in _sites(ast.parse(source)))
    found, names = [], collections.Counter()
    for number in range(count):
        tree = ast.parse(source)
        where, node = list(_sites(tree))[number]
        for change in changes_of(node):
            tree = ast.parse(source)
            old = list(_sites(tree))[number][1]
            _replace(tree, old, change)
            name = f"{where or 'module'}: {_short(old)} -> {_short(change)}"
            names[name] += 1
            times = names[name]
            found.append((f"{name} #{times}" if times > 1 else name, tree))
    return found


def all_mutants(name):
    """Return (module, name, tree) of every mutant of the modules of one name."""
    return [
        (module, *mutant)
        for module in MODULES[name]
        for mutant in mutants_of(_path(module).read_text())
    ]


def _path(module):
    return (ROOT / PACKAGE).joinpath(*module.split(".")).with_suffix(".py")


def _short(node):
    if isinstance(node, (ast.If, ast.IfExp)):
        return f"if {ast.unparse(node.test)}"
    text = " ".join(ast.unparse(node).split())
    return text if len(text) < 90 else text[:87] + "..."


def _replace(tree, old, new):
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list) and any(each is old for each in value):
                value[:] = [new if each is old else each for each in value]
    ast.fix_missing_locations(tree)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads one module from a changed tree."""

    def __init__(self, name, path, tree):
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname):
        return compile(self._tree, self.path, "exec")


class _Finder:
    """Finds that module before Python's own finders do."""

    def __init__(self, loader):
        self._loader = loader

    def find_spec(self, name, path=None, target=None):
        if name != self._loader.name:
            return None
        return importlib.util.spec_from_file_location(
            name, self._loader.path, loader=self._loader
        )


def notices(name, module, tree):
    """Tell whether a test of one name fails with a changed tree of a module.

    In a child of this process, which has imported what takes long and run nothing.
    """
    child = os.fork()
    if not child:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (1, 2):
            os.dup2(nothing, number)
        os._exit(_run_tests(name, module, tree))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code in (4, 5):
        raise RuntimeError(f"pytest ended with status {code}: no test was run")
    return code != 0


def _run_tests(name, module, tree):
    import pytest

    path = _path(module)
    loader = _Loader(f"{PACKAGE}.{module}", str(path), tree)
    sys.meta_path.insert(0, _Finder(loader))
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    try:
        # Here, because pytest has a loader of its own for files that it is given.
        importlib.import_module(loader.name)
        return int(pytest.main([*options, str(path), *TESTS[name]]))
    except BaseException:
        return 1


def check(name, *, sample=None, seed=0):
    """Try the mutants of one name and return (how many, names of the survivors)."""
    first = MODULES[name][0]
    if notices(name, first, ast.parse(_path(first).read_text())):
        raise RuntimeError(f"The tests of {name} fail without a change.")
    mutants = all_mutants(name)
    if sample is not None and sample < len(mutants):
        mutants = random.Random(seed).sample(mutants, sample)
    survivors = []
    for i, (module, change, tree) in enumerate(mutants, start=1):
        if not notices(name, module, tree):
            survivors.append(change)
            print(f"{module}: {change}", flush=True)
        if i % 20 == 0:
            print(
                f"{name}: {i} of {len(mutants)}, {len(survivors)} survived",
                file=sys.stderr,
                flush=True,
            )
    return len(mutants), survivors


def main():
    """Print shares and survivors; the exit status is 1 if one has no reason."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; else all")
    parser.add_argument("--sample", type=int, help="mutants of each module, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    options = parser.parse_args()
    if unknown := set(options.modules) - TESTS.keys():
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(TESTS)}")
    import keras  # noqa: F401  Before the first fork; nothing of it may run here.
    import pytest  # noqa: F401

    reasons = json.loads(SURVIVORS.read_text())
    failed = False
    for module in options.modules or TESTS:
        begin = time.perf_counter()
        count, survivors = check(module, sample=options.sample, seed=options.seed)
        killed = 1 - len(survivors) / count
        without = [each for each in survivors if each not in reasons.get(module, {})]
        seconds = time.perf_counter() - begin
        print(
            f"{module}: {count} mutants, {killed:.1%} killed, {len(without)} survivors "
            f"without a reason, {seconds:.0f} s"
        )
        failed |= killed < 0.85 or bool(without)
    sys.exit(failed)


if __name__ == "__main__":
    main()
