"""One table as text, Markdown, CSV or HTML."""

import csv
import dataclasses
import html
import io
from collections.abc import Iterable, Sequence


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of strings; the first columns hold names, the others numbers.

    Args:
        headings: Headings, one for each column.
        rows: Cells of each row, as displayed.
        notes: Sentences below the table.
        names: Number of columns that hold names, which are left-aligned.

    Example:
        >>> rows = [["exit_1", "91.0%"], ["final", "9.5%"]]
        >>> table = Table(["exit", "accuracy"], rows)
        >>> print(table.text())
        exit    accuracy
        exit_1     91.0%
        final       9.5%
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    names: int = 1

    def text(self) -> str:
        """Return aligned text, for a terminal."""
        widths = self._widths()
        shown = [
            "  ".join(
                f"{cell:<{width}}" if i < self.names else f"{cell:>{width}}"
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [self.headings, *self.rows]
        ]
        return "\n".join([*shown, *([""] if self.notes else []), *self.notes])

    def blocks(self, columns: int) -> list["Table"]:
        """Return tables whose text is narrow enough, each with the names.

        Args:
            columns: Most characters in a line; a column that is wider stands alone.

        Example:
            >>> table = Table(["", "loss", "accuracy"], [["final", "0.5", "90%"]])
            >>> for block in table.blocks(15):
            ...     print(block.text())
                   loss
            final   0.5
                   accuracy
            final       90%
        """
        widths = self._widths()
        groups: list[list[int]] = []
        for column in range(self.names, len(widths)):
            line = [*range(self.names), *(groups[-1] if groups else []), column]
            width = sum(widths[i] for i in line) + 2 * (len(line) - 1)
            if not groups or width > columns:
                groups.append([])
            groups[-1].append(column)
        return [
            dataclasses.replace(
                self,
                headings=[self.headings[i] for i in kept],
                rows=[[row[i] for i in kept] for row in self.rows],
            )
            for kept in ([*range(self.names), *group] for group in groups)
        ]

    def _widths(self) -> list[int]:
        lines = [self.headings, *self.rows]
        return [max(map(len, column)) for column in zip(*lines, strict=True)]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown."""
        rule = [":--" if i < self.names else "--:" for i in range(len(self.headings))]
        lines = [self.headings, rule, *self.rows]
        shown = [
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
            for line in lines
        ]
        return "\n".join([*shown, *([""] if self.notes else []), *self.notes])

    def html(self, title: str = "") -> str:
        """Return an HTML table with a title, for notebooks."""

        def line(tag: str, cells: Sequence[str]) -> str:
            sides = ["left" if i < self.names else "right" for i in range(len(cells))]
            return "".join(
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            )

        body = "".join(f"<tr>{line('td', row)}</tr>" for row in self.rows)
        notes = f"<small>{html.escape(' '.join(self.notes))}</small>"
        return (
            f"<b>{html.escape(title)}</b>"
            f"<table><thead><tr>{line('th', self.headings)}</tr></thead>"
            f"<tbody>{body}</tbody></table>{notes}"
        )


def csv_text(rows: Sequence[dict]) -> str:
    r"""Return rows of the same keys as CSV; `None` becomes an empty cell.

    Example:
        >>> csv_text([{"exit": "final", "accuracy": 0.5, "top_5": None}])
        'exit,accuracy,top_5\nfinal,0.5,\n'
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def compact(number: float, unit: str = "") -> str:
    """Return a number with three digits and a metric prefix.

    Example:
        >>> [compact(n) for n in (0, 950, 1070, 25_600_000)], compact(98_200_000, "B")
        (['0', '950', '1.07 k', '25.6 M'], '98.2 MB')
    """
    for prefix in ("", "k", "M", "G", "T", "P"):
        if number < 999.5 or prefix == "P":
            break
        number /= 1000
    if not prefix:
        return f"{number:.0f} {unit}".rstrip()
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {prefix}{unit}"


def elided(items: Iterable[str], most: int = 6) -> str:
    """Return items in one line, for a representation: of many only the first and last.

    Args:
        items: Names, or what is said of them.
        most: Largest number of items that are all shown.

    Example:
        >>> elided(["exit_1", "exit_2", "final"])
        'exit_1, exit_2, final'
        >>> elided([*"abcdefg"])
        'a, b, … (3 more), f, g'
    """
    shown = list(items)
    if len(shown) > most:
        shown = [*shown[:2], f"… ({len(shown) - 4} more)", *shown[-2:]]
    return ", ".join(shown)
