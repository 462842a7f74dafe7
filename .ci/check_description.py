"""Render the long description of a wheel as an index does, and find what is dead there.

`twine check` does not render Markdown. Called by `.ci/package` with the path of the
wheel; needs `readme_renderer[md]`, which is what PyPI renders with.
"""

import email
import html.parser
import sys
import urllib.parse
import zipfile


class _Page(html.parser.HTMLParser):
    """The addresses and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag leads to, loads and is called."""
        for name, value in attrs:
            if name in ("href", "src", "srcset"):
                self.addresses.append(value or "")
            elif name in ("id", "name"):
                self.anchors.add(value or "")


def faults(page: str) -> list[str]:
    """Return the addresses of an HTML page that lead nowhere on another host.

    Args:
        page: HTML, as the renderer returns it.
    """
    found = _Page()
    found.feed(page)
    return [address for address in found.addresses if _is_dead(address, found.anchors)]


def _is_dead(address: str, anchors: set[str]) -> bool:
    if address.startswith("#"):
        return address[1:] not in anchors
    return urllib.parse.urlsplit(address).scheme not in ("http", "https")


def description(wheel: str) -> str:
    """Return the long description in the metadata of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    if metadata["Description-Content-Type"] != "text/markdown":
        raise SystemExit(f"not Markdown: {metadata['Description-Content-Type']}")
    return metadata.get_payload(decode=True).decode()


def rendered(text: str) -> str:
    """Return Markdown as HTML."""
    from readme_renderer import markdown

    page = markdown.render(text)
    if page is None:
        raise SystemExit("The long description cannot be rendered.")
    return page


if __name__ == "__main__":
    text = description(sys.argv[1])
    page = rendered(text)
    for tag in ("<h1", "<table", "<pre", "<code"):
        if tag not in page:
            raise SystemExit(f"The rendered long description has no {tag}>.")
    if dead := faults(page):
        raise SystemExit(f"Dead in the rendered long description: {dead}")
    # The check sees, through the renderer, what a reader of the index would miss.
    planted = "[a](b.md) [c] <img src='docs/d.svg'> [e](#none) [f](#g)\n\n# G\n\n[c]: h"
    expected = ["b.md", "h", "docs/d.svg", "#user-content-none"]
    if (dead := faults(rendered(planted))) != expected:
        raise SystemExit(f"The check finds {dead} of {expected}.")
    print(f"The long description renders: {len(page)} characters of HTML.")
