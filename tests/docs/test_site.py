"""The built site is whole, and a browser shows all of every page, also on a phone."""

import html
import importlib.util
import inspect
import json
import re
import shutil
import urllib.parse
import zlib

import keras
import pytest

import keras_selfdistill as ksd
from tests import browser
from tests.conftest import miss, run_python

pytestmark = [pytest.mark.once, pytest.mark.process, pytest.mark.long]

DESKTOP, PHONE = 1280, 400
# What a user calls of what a class of this package overrides of Keras.
CALLED = {"compile", "fit", "evaluate", "predict", "test_on_batch", "save"}
# What is wrong on the page that is open, links aside. A table is cut where its last
# column lies beyond a box around it; on a phone it may scroll inside of one.
LOOK = """(scrolling => {
  const said = element => element.innerText.trim().slice(0, 60);
  const cut = table => {
    const cells = [...table.rows].flatMap(row => [...row.cells].slice(-1));
    let right = Math.max(...cells.map(cell => cell.getBoundingClientRect().right));
    for (let box = table; box; box = box.parentElement) {
      const overflow = getComputedStyle(box).overflowX;
      if (overflow === "visible") continue;
      const edge = box.getBoundingClientRect().right;
      const scrolls = overflow === "auto" || overflow === "scroll";
      if (right > edge + 1 && !(scrolls && scrolling)) return true;
      right = Math.min(right, edge);
    }
    return right > innerWidth + 1;
  };
  const page = document.documentElement;
  const signatures = document.querySelectorAll(".doc-signature code");
  return {
    faults: [
      ...(page.scrollWidth > innerWidth ? [`the page is ${page.scrollWidth} wide`] : []),
      ...[...document.images].filter(image => !image.naturalWidth)
        .map(image => `no image ${image.src}`),
      ...[...document.querySelectorAll("table")].filter(cut)
        .map(table => `a table is cut: ${said(table)}`),
      ...[...signatures].filter(c => !scrolling && c.scrollWidth > c.clientWidth)
        .map(code => `a signature is cut: ${said(code)}`),
    ],
    links: [...document.links].map(link => link.href),
    anchors: [...document.querySelectorAll("[id], a[name]")].map(e => e.id || e.name),
  };
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if importlib.util.find_spec("mkdocs") is None:
        miss("mkdocs is not installed")
    folder = tmp_path_factory.mktemp("site")
    run_python("-m", "mkdocs", "build", "--strict", "--site-dir", folder)
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser.tab(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def documented(site):
    """The full names that the API's pages describe."""
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    return {line.split()[0] for line in lines}


def pages_of(site):
    """Return all pages but that of a server for what is missing: its links need one."""
    return sorted(set(site.rglob("*.html")) - {site / "404.html"})


def faults_of(tab, site, width):
    """Return what is wrong with the pages at a width, each with its page."""
    tab.resize(width)
    found, links, anchors = [], [], {}
    for path in pages_of(site):
        tab.open(path.as_uri())
        seen = tab.ask(f"{LOOK}({json.dumps(width == PHONE)})")
        name = str(path.relative_to(site))
        found += [f"{name}: {fault}" for fault in seen["faults"]]
        links += [(name, link) for link in seen["links"]]
        anchors[path.as_uri()] = {"", *seen["anchors"]}
    return found + [f"{name}: dead {link}" for name, link in links if dead(link, anchors)]


def dead(link, anchors):
    """Tell whether a link leads to no page of the site, or to no place on it.

    What leads to another host is not looked at.
    """
    page, anchor = urllib.parse.urldefrag(link)
    if urllib.parse.urlsplit(page).scheme != "file":
        return False
    return urllib.parse.unquote(anchor) not in anchors.get(page, ())


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_browser_shows_all_of_every_page(site, tab, width):
    assert len(pages_of(site)) > 30
    assert faults_of(tab, site, width) == []


def columns(number):
    return f"<table><tr>{'<td>wide&nbsp;cell</td>' * number}</tr></table>"


PLANTED = {
    '<div style="width: 1500px">wide</div>': ("page is 1[5-9]", "page is 1[5-9]"),
    '<div style="width: 500px">wide</div>': (None, "page is 5"),
    '<img src="nowhere.png">': ("no image .*/nowhere", "no image .*/nowhere"),
    '<a href="nowhere.html">link</a>': ("dead .*/nowhere", "dead .*/nowhere"),
    '<a href="page.html#nowhere">link</a>': ("dead .*#nowhere", "dead .*#nowhere"),
    '<a href="#nowhere">link</a>': ("dead .*#nowhere", "dead .*#nowhere"),
    '<a href="https://example.com/nowhere">link</a>': (None, None),
    columns(4): (None, None),
    columns(20): ("table is cut: wide", None),
    f'<div style="overflow: hidden">{columns(20).replace("<table", "<table class=x")}'
    "</div>": ("table is cut: wide", "table is cut: wide"),
    f'<div class="doc-signature"><pre><code>f({"long, " * 30})</code></pre></div>': (
        "signature is cut: f",
        None,
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_faults_are_found(site, tab, tmp_path, planted):
    shutil.copytree(site / "assets", tmp_path / "assets")
    shutil.copy(site / "site.css", tmp_path)
    # A page in the site's style, of a heading alone.
    text = (site / "concepts.html").read_text(encoding="utf-8")
    before, article = re.split(r"(?<=<article)(?=[^>]*>)", text, maxsplit=1)
    assert article
    head = re.match(r"[^>]*>", article)[0]
    after = article.split("</article>", 1)[1]
    links = re.compile(r'(<(?:a|label)\b[^>]*) href="[^"]*"')
    bare = [links.sub(r"\1", part) for part in (before, after)]
    page = tmp_path / "page.html"
    for width, expected in zip((DESKTOP, PHONE), PLANTED[planted], strict=True):
        page.write_text(f"{bare[0]}{head}{planted}</article>{bare[1]}")
        found = faults_of(tab, tmp_path, width)
        assert len(found) == (expected is not None), found
        if expected:
            assert re.search(f"^page.html: .*{expected}", found[0]), found


def public_names():
    """Return the full name of all that users may import."""
    names = []
    for name in ksd.__all__:
        thing = getattr(ksd, name)
        full = f"keras_selfdistill.{name}"
        names.append(full)
        if inspect.ismodule(thing):
            own = [
                key
                for key, value in vars(thing).items()
                if getattr(value, "__module__", None) == full and key[0] != "_"
            ]
            names += [f"{full}.{key}" for key in getattr(thing, "__all__", own)]
    return names


def test_every_public_name_is_described(documented):
    assert set(public_names()) <= documented


def test_what_keras_calls_by_itself_is_not_described(documented):
    kinds = (keras.Model, keras.losses.Loss, keras.callbacks.Callback)
    shown = set()
    for name in public_names():
        thing = vars(ksd).get(name.split(".")[1])
        for part in name.split(".")[2:]:
            thing = getattr(thing, part)
        own = [kind for kind in kinds if isinstance(thing, type) and thing in (kind,)]
    assert shown == CALLED


def test_nothing_is_loaded_from_other_hosts(site):
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["']?(?:https?:)?//"""
        r"""|url\(["']?(?:https?:)?//|@import"""
    )
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = loads.search(path.read_text(encoding="utf-8"))
        assert found is None, (path.name, found)
