"""The built site is whole, and a browser shows all of every page, also on a phone."""

import base64
import importlib.util
import inspect
import io
import json
import pathlib
import re
import shutil
import urllib.parse
import zlib

import keras
import matplotlib.image
import numpy as np
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
      ...[page].filter(page => page.scrollWidth > innerWidth)
        .map(page => `the page is ${page.scrollWidth} wide`),
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
        anchors[f"file://{path}"] = {"", *seen["anchors"]}
    return found + [
        f"{name}: dead {link}" for name, link in links if dead(link, anchors)
    ]


def dead(link, anchors):
    """Tell whether a link leads to no page of the site, or to no place on it.

    What leads to another host is not looked at.
    """
    page, anchor = map(urllib.parse.unquote, urllib.parse.urldefrag(link))
    if urllib.parse.urlsplit(page).scheme != "file":
        return False
    if page in anchors:
        return anchor not in anchors[page]
    return not pathlib.Path(page.removeprefix("file://")).is_file()


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_a_browser_shows_all_of_every_page(site, tab, width):
    assert len(pages_of(site)) > 30
    assert faults_of(tab, site, width) == []


def columns(number, attributes=""):
    return f"<table {attributes}><tr>{'<td>wide&nbsp;cell</td>' * number}</tr></table>"


# What is added to a page, and what is found then at each width.
PLANTED = [
    ('<div style="width: 1500px">x</div>', "page is 1[5-9].. wide", "page is 1[5-9].."),
    ('<div style="width: 500px">x</div>', None, "page is 5.. wide"),
    ('<img src="nowhere.png">', "no image file:.*/nowhere", "no image file:.*/nowhere"),
    ('<a href="nowhere.html">x</a>', "dead .*/nowhere.html", "dead .*/nowhere.html"),
    ('<a href="index.html#nowhere">x</a>', "dead .*l#nowhere", "dead .*l#nowhere"),
    ('<a href="#nowhere">x</a>', "dead .*#nowhere", "dead .*#nowhere"),
    ('<a href="accuracy.svg">x</a>', None, None),
    ('<a href="https://example.com/nowhere">x</a>', None, None),
    (columns(4), None, None),
    (columns(20), "table is cut: wide", None),
    (
        f'<div style="overflow: hidden">{columns(20, "class=x")}</div>',
        "table is cut: wide",
        "table is cut: wide",
    ),
    (
        f'<div class="doc-signature"><pre><code>f({"x, " * 99})</code></pre></div>',
        "signature is cut: f",
        None,
    ),
]


def test_faults_are_found(site, tab, tmp_path):
    copy = shutil.copytree(site, tmp_path / "site")
    top = [page for page in pages_of(copy) if page.parent == copy]
    pages = [*top, *sorted(copy.glob("how_to/*.html"))][: len(PLANTED)]
    for page, (planted, *_) in zip(pages, PLANTED, strict=True):
        text = page.read_text(encoding="utf-8")
        assert text.count("</article>") == 1
        page.write_text(text.replace("</article>", planted + "</article>"))
    for column, width in ((1, DESKTOP), (2, PHONE)):
        expected = [
            f"{page.relative_to(copy)}: .*{row[column]}"
            for page, row in zip(pages, PLANTED, strict=True)
            if row[column]
        ]
        found = faults_of(tab, copy, width)
        missed = [
            each for each in expected if not any(map(re.compile(each).match, found))
        ]
        assert not missed, found
        assert len(found) == len(expected), found


def public_things():
    """Return all that users may import, by full name."""
    found = {}
    for name in ksd.__all__:
        thing = getattr(ksd, name)
        full = f"keras_selfdistill.{name}"
        found[full] = thing
        if inspect.ismodule(thing):
            own = [
                key
                for key, value in vars(thing).items()
                if getattr(value, "__module__", None) == full and key[0] != "_"
            ]
            for key in getattr(thing, "__all__", own):
                found[f"{full}.{key}"] = getattr(thing, key)
    return found


ILLUSTRATED = ("index", "concepts", "benchmarks", "how_to/pictures")
# How the page comes to be dark: the system's setting, or the switch at its top.
MODES = {"light": ("light", ""), "dark": ("dark", ""), "switch": ("light", "slate")}


def corners_and_contrast(tab, image):
    """Return a picture's corners as the screen shows them, and its largest contrast."""
    box = tab.ask(f"""(image => {{
        const box = image.getBoundingClientRect();
        return {{x: box.x + scrollX, y: box.y + scrollY,
                 width: box.width, height: box.height, scale: 1}};
    }})({image})""")
    shot = tab.send("Page.captureScreenshot", captureBeyondViewport=True, clip=box)
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(shot["data"])))
    pixels = np.round(255 * pixels[..., :3]).astype(int)
    corners = pixels[2 :: pixels.shape[0] - 5, 2 :: pixels.shape[1] - 5].reshape(-1, 3)
    return corners, abs(pixels - corners[0]).max()


@pytest.mark.parametrize("mode", MODES)
def test_pictures_have_the_background_of_the_page(site, tab, mode):
    system, switched = MODES[mode]
    features = [{"name": "prefers-color-scheme", "value": system}]
    tab.send("Emulation.setEmulatedMedia", features=features)
    tab.resize(DESKTOP)
    tab.open((site / "index.html").as_uri())
    tab.ask("localStorage.clear()")  # Where the site keeps the last scheme.
    seen = 0
    for page in ILLUSTRATED:
        tab.open((site / f"{page}.html").as_uri())
        if switched:
            tab.ask(f"document.body.dataset.mdColorScheme = {switched!r}")
        color = tab.ask("getComputedStyle(document.body).backgroundColor")
        background = np.array(re.findall(r"\d+", color)[:3], int)
        assert (background > 200).all() == (mode == "light")
        for number in range(tab.ask("document.images.length")):
            image = f"document.images[{number}]"
            corners, contrast = corners_and_contrast(tab, image)
            assert len(corners) == 4
            source = tab.ask(f"{image}.src")
            assert abs(corners - background).max() <= 4, (source, corners, background)
            assert contrast > 120, source
            seen += 1
    assert seen > 12


def test_every_public_name_is_described(documented):
    assert set(public_things()) <= documented


def test_what_keras_calls_by_itself_is_not_described(documented):
    shown = set()
    for name, thing in public_things().items():
        for kind in (keras.Model, keras.losses.Loss, keras.callbacks.Callback):
            if inspect.isclass(thing) and issubclass(thing, kind):
                members = {f"{name}.{member}": member for member in dir(kind)}
                shown |= {members[full] for full in members.keys() & documented}
    assert shown == CALLED


def test_signatures_have_no_private_names(site):
    found = 0
    for path in site.glob("api/*.html"):
        text = path.read_text(encoding="utf-8")
        for signature in re.findall(r"doc-signature.*?</pre>", text, re.DOTALL):
            shown = re.sub("<[^>]+>", "", signature)
            assert not re.search(r"\b_[A-Za-z]", shown), shown
            found += 1
    assert found > 100


def test_nothing_is_loaded_from_other_hosts(site):
    loads = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["']?(?:https?:)?//"""
        r"""|url\(["']?(?:https?:)?//|@import"""
    )
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = loads.search(path.read_text(encoding="utf-8"))
        assert found is None, (path.name, found)
