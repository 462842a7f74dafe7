r"""Makes the notebooks of the tutorials from their scripts, or checks them.

    python tutorials/build.py                            # all, as a reader runs them
    python tutorials/build.py --only=digits              # one
    python tutorials/build.py --check --small            # what CI does

A tutorial is a script in jupytext's percent format; the notebook beside it is made from
it: the script's cells, executed from top to bottom, and a last line that says where.
Change the script, never the notebook. What a library writes to stderr is left out.

`--small` runs every tutorial in less than a minute: behind the cell whose header has
`small={"EPOCHS": 1}`, it assigns those values to the reader's constants. A notebook is
committed with the outputs of the constants that it shows.

`--check` executes into memory, writes nothing, and fails if a cell raises or if the
committed notebook is stale:

- its cells are not the script's;
- a text output differs. Where a cell is tagged `measured`, because its numbers come
  from training or from a clock, only the words must be the same, and shares in per cent
  within 15 points if the notebook was made with the constants of the check. All other
  outputs must be equal to the letter, on any backend and at any size;
- a picture is missing, or one too many. Pictures are not compared.

Images of CIFAR-100 come from the TensorFlow Datasets folder `CIFAR100_DIR`, by default
`../shared/tfds`, if there is one; else they are downloaded.
"""

import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import jupytext
import nbclient
import nbformat
from absl import app, flags

FLAGS = flags.FLAGS
FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent
TUTORIALS = ("digits", "applications", "early_exit", "own_recipe", "byot_table")
TOLERANCE = 15.0  # per cent points
MEASURED = "measured"
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
NUMBER = re.compile(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?(?: (?:[kMG]B?|B)\b)?")
TAG = re.compile(r"<[^>]*>")
SHARE = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*%")


def define_flags() -> None:
    """Defines the command line; a function, so that tests may import this."""
    flags.DEFINE_bool("check", False, "Compare with the notebooks; write nothing.")
    flags.DEFINE_bool("small", False, "Run with the scripts' small constants.")
    flags.DEFINE_multi_enum("only", list(TUTORIALS), TUTORIALS, "Which tutorials.")


def read_script(name: str) -> nbformat.NotebookNode:
    """Returns the cells of a script as a notebook without outputs."""
    read = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    for number, cell in enumerate(read.cells):
        cell.id = f"cell-{number}"
        notebook.cells.append(cell)
    return notebook


def read_notebook(name: str) -> nbformat.NotebookNode:
    """Returns the committed notebook."""
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def execute(name: str, *, small: bool) -> nbformat.NotebookNode:
    """Runs a script's cells in a kernel of their own.

    Args:
        name: Of the tutorial.
        small: Whether the script's small constants take the place of the reader's.

    Returns:
        The notebook with outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell raised.
    """
    notebook = read_script(name)
    overrides = _override(notebook) if small else {}
    with tempfile.TemporaryDirectory() as folder:
        nbclient.NotebookClient(
            notebook,
            timeout=None,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        ).execute(env=environment())
    notebook.cells = [each for each in notebook.cells if each.id != "other_constants"]
    code = [each for each in notebook.cells if each.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        cell.execution_count = number
        cell.outputs = [_tidy(each, number) for each in cell.outputs if _kept(each)]
    notebook.cells.append(_made_by(overrides, len(notebook.cells)))
    notebook.metadata = {**METADATA, "constants": overrides}
    return notebook


def _override(notebook) -> dict[str, Any]:
    """Adds a cell with the small constants; returns what they are."""
    overrides: dict[str, Any] = {}
    for number, cell in enumerate(list(notebook.cells)):
        if "small" in cell.metadata:
            overrides = cell.metadata["small"]
            lines = [f"{key} = {value!r}" for key, value in overrides.items()]
            added = nbformat.v4.new_code_cell("\n".join(lines), id="other_constants")
            notebook.cells.insert(number + 1, added)
    return overrides


def environment() -> dict[str, str]:
    """Returns the environment of kernels: this checkout, and images if here."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    images = pathlib.Path(os.environ.get("CIFAR100_DIR", ROOT.parent / "shared/tfds"))
    if (images.expanduser() / "cifar100").exists():
        variables["TFDS_DATA_DIR"] = str(images.expanduser().resolve())
    return variables


def _kept(output) -> bool:
    return output.get("name") != "stderr"


def _tidy(output, number):
    """Returns an output without what differs between two equal runs."""
    if "execution_count" in output:
        output.execution_count = number
    return output


def _made_by(overrides, number):
    """Returns the last cell: where the outputs come from."""
    sys.path.insert(0, str(ROOT / "examples"))
    from shared.environment import machine, versions

    installed = ", ".join(f"{k} {v}" for k, v in versions().items())
    constants = ", ".join(f"`{key} = {value!r}`" for key, value in overrides.items())
    size = f"; not the constants above, but {constants}" if overrides else ""
    text = f"*The outputs come from: {machine()}; {installed}{size}.*"
    return nbformat.v4.new_markdown_cell(
        text, id=f"cell-{number}", metadata={"tags": ["made_by"]}
    )


def differences(committed, fresh) -> list[str]:
    """Returns what is stale in a notebook, empty if nothing is.

    Args:
        committed: The notebook as stored.
        fresh: The notebook of the same script, just executed.
    """
    return cell_differences(committed, fresh) or output_differences(committed, fresh)


def cell_differences(committed, script) -> list[str]:
    """Returns which cells of a notebook are not those of its script."""
    ours, theirs = _cells(committed), _cells(script)
    if len(ours) != len(theirs):
        return [f"{len(ours)} cells, but the script has {len(theirs)}"]
    return [
        f"cell {number} is not the script's: {mine.source[:60]!r}"
        for number, (mine, other) in enumerate(zip(ours, theirs, strict=True))
        if (mine.cell_type, mine.source, mine.metadata)
        != (other.cell_type, other.source, other.metadata)
    ]


def output_differences(committed, fresh) -> list[str]:
    """Returns which outputs of a notebook are not those of a new run."""
    same_size = committed.metadata.get("constants") == fresh.metadata["constants"]
    found = []
    cells = zip(_cells(committed), _cells(fresh), strict=True)
    for number, (old, new) in enumerate(cells):
        if new.cell_type != "code":
            continue
        before, after = _text(old), _text(new)
        if MEASURED in new.metadata.get("tags", []):
            if same_size and _far(before, after):
                found.append(f"cell {number}: {after!r} is far from {before!r}")
            before, after = _words(before), _words(after)
        if before != after:
            found.append(f"cell {number} prints {after!r}, in the notebook {before!r}")
        if _pictures(old) != _pictures(new):
            found.append(f"cell {number} draws another number of pictures")
    return found


def _cells(notebook):
    made_by = "made_by"
    return [c for c in notebook.cells if made_by not in c.metadata.get("tags", [])]


def _text(cell) -> str:
    """Returns what a cell printed, as one sees it."""
    lines = "\n".join(map(_shown, cell.outputs)).split("\n")
    return "\n".join(line.rstrip().split("\r")[-1] for line in lines).strip()


def _shown(output) -> str:
    """Returns the text of one output; of a table in HTML, that of its cells."""
    if output.output_type == "stream":
        return output.text
    page = output.data.get("text/html")
    return TAG.sub(" ", page) if page else output.data.get("text/plain", "")


def _words(text: str) -> str:
    """Returns a text with a mark for every number, and one space between words."""
    return " ".join(NUMBER.sub("#", text).split())


def _far(before: str, after: str) -> bool:
    """Tells whether shares in per cent have moved by more than the tolerance."""
    shares = zip(SHARE.findall(before), SHARE.findall(after), strict=False)
    return any(abs(float(old) - float(new)) > TOLERANCE for old, new in shares)


def _pictures(cell) -> int:
    return sum("image/png" in each.get("data", {}) for each in cell.outputs)


def main(argv: list[str]) -> None:
    """Builds or checks the notebooks."""
    if len(argv) > 1:
        raise app.UsageError(f"Received {argv[1:]}; expected --only=name.")
    stale = False
    for name in FLAGS.only:
        notebook = execute(name, small=FLAGS.small)
        if FLAGS.check:
            found = differences(read_notebook(name), notebook)
            print(f"{name}: {'stale' if found else 'up to date'}", *found, sep="\n  ")
            stale = stale or bool(found)
        else:
            nbformat.write(notebook, FOLDER / f"{name}.ipynb")
            print(f"{name}: written")
    if stale:
        sys.exit("Stale notebooks: read the differences, run tutorials/build.py.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
