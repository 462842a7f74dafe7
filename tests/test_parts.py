"""`KSD_PART=k/n` runs a part of the long tests: together the parts are all of them."""

import types

import pytest

from .conftest import ROUNDS, pytest_collection_modifyitems

pytestmark = pytest.mark.once
LONG = [f"tests/test_files.py::test_loads[{number}]" for number in range(30)]
ALWAYS = ["tests/test_files.py::test_saves", f"tests/test_backends.py::{ROUNDS}[jax]"]


def item(nodeid):
    """Return what the hook reads of a test."""
    mark = None if nodeid == ALWAYS[0] else pytest.mark.long
    return types.SimpleNamespace(
        nodeid=nodeid,
        name=nodeid.split("::")[1],
        get_closest_marker={"long": mark}.get,
    )


def run(monkeypatch, part):
    """Return the tests that a part runs and those that it leaves out."""
    monkeypatch.setenv("KSD_PART", part)
    items, left_out = [item(nodeid) for nodeid in [*LONG, *ALWAYS]], []
    hook = types.SimpleNamespace(pytest_deselected=lambda items: left_out.extend(items))
    pytest_collection_modifyitems(types.SimpleNamespace(hook=hook), items)
    return [each.nodeid for each in items], [each.nodeid for each in left_out]


def test_every_long_test_is_in_one_part_and_all_others_in_each(monkeypatch):
    parts = [run(monkeypatch, f"{part}/3") for part in range(3)]
    for found, left_out in parts:
        assert found[0] == ALWAYS[1]  # The round of another backend begins.
        assert sorted(found + left_out) == sorted(LONG + ALWAYS)
    found = [nodeid for found, _ in parts for nodeid in found]
    assert sorted(found) == sorted(LONG + 3 * ALWAYS)
    assert max(len(left_out) for _, left_out in parts) < len(LONG)


def test_without_a_part_all_are_run(monkeypatch):
    assert run(monkeypatch, "0/1") == ([ALWAYS[1], *LONG, ALWAYS[0]], [])


@pytest.mark.parametrize("part", ["3/3", "0/0", "1", "", "-1/3", "first"])
def test_a_part_that_there_is_not_is_refused(monkeypatch, part):
    with pytest.raises(pytest.UsageError, match=rf"KSD_PART={part}; expected k/n"):
        run(monkeypatch, part)
