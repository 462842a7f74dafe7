"""`examples/analysis.py` writes a page of its own that a browser shows in full."""

import html.parser
import itertools
import json
import re
import subprocess

import numpy as np
import pytest
from PIL import Image

from tests.browser import command as browser_command
from tests.conftest import ROOT, run_python

pytestmark = [pytest.mark.process, pytest.mark.real_data, pytest.mark.long]

# What the browser makes of the page, written where it prints the document.
ASK = """<script>
addEventListener("load", () => {
  const images = [...document.images];
  document.body.dataset.found = JSON.stringify({
    widths: images.map(image => image.naturalWidth),
    shown: images.map(image => image.getBoundingClientRect().width),
    height: document.documentElement.scrollHeight,
    overflow: document.documentElement.scrollWidth - innerWidth,
  });
});
</script></body>"""


def browse(url, *options, folder):
    """Run a headless browser and return what it printed."""
    command = [*browser_command(folder, *options), url]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def folder(tfds_folder, tmp_path_factory):
    """The files of a short run on CIFAR-100."""
    folder = tmp_path_factory.mktemp("analysis")
    run(folder, tfds_folder, "--epochs=2")
    return folder


def run(folder, data, *options):
    return run_python(
        ROOT / "examples" / "analysis.py",
        f"--data_dir={data}",
        "--train_examples=1000",
        "--width_multiplier=0.125",
        "--taps=3",
        "--images=300",
        "--noise=0,0.02,0.05",
        "--noise_repeats=2",
        f"--output_dir={folder}",
        *options,
    )


class Tables(html.parser.HTMLParser):
    """Collects the rows of all tables."""

    def __init__(self):
        super().__init__()
        self.tables = []
        self.open = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        while self.open.pop() != tag:  # Tags without an end, such as img.
            pass

    def handle_data(self, text):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += text


def test_a_browser_shows_the_page(folder, tmp_path):
    text = (folder / "analysis.html").read_text()
    # Nothing is fetched: every source is in the file.
    assert not re.search(r'(src|href)="(?!data:image/svg)', text)
    assert not re.search(r"@import|url\(", text)
    asking = tmp_path / "asking.html"
    asking.write_text(text.replace("</body>", ASK))
    size = "--window-size=800,1000"
    printed = browse(asking.as_uri(), size, "--dump-dom", folder=tmp_path / "one")
    answer = re.search(r'data-found="([^"]*)"', printed)[1]
    found = json.loads(html.unescape(answer))
    assert len(found["widths"]) == 10
    assert min(found["widths"]) > 500  # Of a picture that cannot be read: 0.
    assert min(found["shown"]) > 700
    assert found["overflow"] <= 0
    shot = tmp_path / "page.png"
    browse(
        (folder / "analysis.html").as_uri(),
        f"--window-size=800,{found['height']}",
        f"--screenshot={shot}",
        folder=tmp_path / "two",
    )
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape[:2] == (found["height"], 800)
    # All of the page is drawn: no empty stretch as high as a picture.
    inked = np.flatnonzero((pixels < 200).any(axis=(1, 2)))
    assert np.diff(inked).max() < 200
    for color in ("0072B2", "009E73", "D55E00", "CC79A7"):
        wanted = [int(color[i : i + 2], 16) for i in (0, 2, 4)]
        assert (pixels == wanted).all(axis=-1).sum() > 50, color


def test_the_tables_hold_what_was_found(folder):
    parser = Tables()
    parser.feed((folder / "analysis.html").read_text())
    costs, noise, first, last, features, answers, made = parser.tables
    exits = ["exit_1", "exit_2", "exit_3", "final"]
    assert [row[0] for row in costs[1:]] == [*exits, "ensemble", "plain"]
    assert costs[4][2] == costs[6][2] == "100.0%"
    assert [row[0] for row in noise] == ["noise", "0", "0.02", "0.05"]
    assert noise[0][1:] == ["plain", "distilled"]
    assert len(first) == len(last) == 22  # 20 convolutions and a dense layer.
    # At the start, with the same weights, exits add to what the stem is told.
    assert float(first[1][2]) > float(first[1][1])
    assert first[-1][1] == first[-1][2]
    assert [row[0] for row in features[1:]] == [*exits, "plain"]
    for _, within, between, ratio, _ in features[1:]:
        quotient = float(between) / float(within)
        assert quotient == pytest.approx(float(ratio), abs=0.01)
    assert [row[0] for row in answers[1:]] == exits
    assert [row[1] for row in answers[1:]] == [row[1] for row in costs[1:5]]
    settings = dict(itertools.islice(row, 2) for row in made)
    assert settings["train_examples"] == "1000"
    assert {"keras", "machine", "backend"} <= set(settings)


def test_the_networks_may_come_from_files(folder, tfds_folder, tmp_path):
    files = [f"--{kind}_model={folder / kind}.keras" for kind in ("plain", "distilled")]
    run(tmp_path, tfds_folder, *files)
    assert [path.name for path in tmp_path.iterdir()] == ["analysis.html"]
    pages = [Tables(), Tables()]
    for page, place in zip(pages, (folder, tmp_path), strict=True):
        page.feed((place / "analysis.html").read_text())
    trained, loaded = (page.tables for page in pages)
    # But for the gradients before training and the flags.
    assert trained[:2] + trained[4:-1] == loaded[:2] + loaded[3:-1]
    told, known = (
        dict(itertools.islice(row, 2) for row in tables[-1])
        for tables in (trained, loaded)
    )
    assert told["epochs"] == "2"
    assert not {"epochs", "width_multiplier"} & known.keys()
    assert known["plain_model"].endswith("plain.keras")
    result = run_python(
        ROOT / "examples" / "analysis.py", files[0], check=False, backend="tensorflow"
    )
    assert result.returncode
    assert "expected both or neither" in result.stdout + result.stderr
