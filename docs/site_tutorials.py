"""What the site shows that lies elsewhere: tutorials with their outputs, and pictures.

Notebooks of `tutorials/` become pages `tutorials/*.md`. Pictures that a page takes from
`tests/visualization/pictures` (the references that image tests compare with) are shown,
too.
"""

import base64
import json
import pathlib
import re
from typing import Any

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parents[1]
FORMULA = re.compile(r"\$\$(.*?)\$\$", re.DOTALL)
COLAB = re.compile(r"^\[!\[Open in Colab\].*\n\(.*\)$", re.MULTILINE)


def on_files(files: Any, *, config: Any) -> Any:
    """Add pages and pictures to the site."""
    for path in sorted((ROOT / "tutorials").glob("*.ipynb")):
        page, pictures = _page(path)
        name = f"tutorials/{path.stem}.md"
        files.append(File.generated(config, name, content=page))
        for number, picture in enumerate(pictures):
            name = f"tutorials/{path.stem}_{number}.png"
            files.append(File.generated(config, name, content=picture))
    for path in sorted((ROOT / "tests" / "visualization" / "pictures").glob("*.png")):
        name = f"pictures/{path.name}"
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Let links that hold in the repository hold in the site."""
    markdown = markdown.replace("../tests/visualization/pictures/", "pictures/")
    return re.sub(r"\.\./(tutorials/\w+)\.ipynb", r"\1.md", markdown)


def _page(path):
    """Return a notebook in Markdown, and its pictures."""
    parts: list[str] = []
    pictures: list[bytes] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = COLAB.sub("", source)
            parts.append(FORMULA.sub(r"```math\n\1\n```", text))
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![](./{path.stem}_{len(pictures)}.png)")
                pictures.append(base64.b64decode("".join(data["image/png"])))
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                text = "".join(output.get("text", data.get("text/plain", "")))
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures
