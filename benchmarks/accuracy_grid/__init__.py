"""The parts of accuracy.py and accuracy_time.py: methods, training, the table.

They read CIFAR-100 and write files as the examples do; this makes `shared` of the
examples importable.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples"))
