"""Draw `exits.svg`: a base with three exits, and who teaches whom.

python docs/draw_exits.py
"""

import io
import pathlib

import matplotlib
from dark_mode import with_dark_mode

import keras_selfdistill as ksd

if __name__ == "__main__":
    base = ksd.networks.resnet18(classes=100)
    model = ksd.SelfDistiller(base, taps=3, recipe="byot")
    # Text as text, and the same file each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "exits"}):
        figure = ksd.visualization.plot_model(model)
        drawn = io.StringIO()
        options = {"format": "svg", "transparent": True, "metadata": {"Date": None}}
        figure.savefig(drawn, **options)
    path = pathlib.Path(__file__).with_name("exits.svg")
    path.write_text(with_dark_mode(drawn.getvalue()), encoding="utf-8")
