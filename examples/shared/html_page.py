"""One HTML page in one file: headings, paragraphs, tables and vector pictures."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; margin: 2rem auto;
  max-width: 820px; padding: 0 1rem; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
"""


class Page:
    """A page that grows from top to bottom and needs no other file.

    Args:
        title: Title of the page.
    """

    def __init__(self, title: str) -> None:
        self._title = html.escape(title)
        self._parts = [f"<h1>{self._title}</h1>"]

    def heading(self, text: str) -> None:
        """Begins a section."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Adds a paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Adds a table; the first column is aligned left, the others right."""
        lines = [self._row("th", header), *(self._row("td", row) for row in rows)]
        self._parts.append("<table>\n" + "\n".join(lines) + "\n</table>")

    def picture(self, figure: Any, alt: str) -> None:
        """Adds a matplotlib figure.

        Args:
            figure: The figure.
            alt: What it shows, for those who do not see it.
        """
        content = io.BytesIO()
        figure.savefig(content, format="svg")
        # As a file of its own, because ids of inline pictures would clash.
        encoded = base64.b64encode(content.getvalue()).decode()
        source = f"data:image/svg+xml;base64,{encoded}"
        self._parts.append(f'<img alt="{html.escape(alt)}" src="{source}">')

    def render(self) -> str:
        """Returns the page as HTML."""
        body = "\n".join(self._parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width">\n'
            f"<title>{self._title}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n{body}\n</body>\n</html>\n"
        )

    def _row(self, kind: str, cells: Sequence[str]) -> str:
        texts = (html.escape(str(cell)) for cell in cells)
        return "<tr>" + "".join(f"<{kind}>{t}</{kind}>" for t in texts) + "</tr>"
