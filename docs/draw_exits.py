"""Draw `exits.svg`: a base with three exits, and who teaches whom.

python docs/draw_exits.py
"""

import pathlib

import matplotlib

import keras_selfdistill as ksd

if __name__ == "__main__":
    base = ksd.networks.resnet18(classes=100)
    model = ksd.SelfDistiller(base, taps=3, recipe="byot")
    # Text as text, and the same file each time.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "exits"}):
        figure = ksd.visualization.plot_model(model)
        path = pathlib.Path(__file__).with_name("exits.svg")
        figure.savefig(path, metadata={"Date": None})
