"""Run a folder of exported sections, sample by sample as far as each needs to go.

This file is copied into every such folder and needs NumPy and the folder's runtime,
onnxruntime or openvino; no Keras. As a command it answers the rows of an .npy file:

    python section_runner.py FOLDER INPUTS.npy
"""

import hashlib
import json
import pathlib
import sys

import numpy as np

FORMAT, VERSION = "keras_selfdistill.sections", 1


class SectionRunner:
    """An early-exit network, loaded from a folder.

    Args:
        folder: With `manifest.json` and the sections' files.

    Raises:
        ValueError: The manifest is no such manifest, or a file was changed.
    """

    def __init__(self, folder):
        folder = pathlib.Path(folder)
        manifest = read_manifest(folder)
        self.exits, self.thresholds = manifest["exits"], manifest["thresholds"]
        load = {"onnx": load_onnx, "openvino": load_openvino}[manifest["runtime"]]
        self._sections = [load(folder / each["model"]) for each in manifest["sections"]]

    def __call__(self, *inputs):
        """Return (predictions, exit names, scores) of a batch, in its order.

        Args:
            *inputs: One array for each input of the network, `(batch, …)`.
        """
        rows = np.arange(len(inputs[0]))
        tensors = [np.asarray(each) for each in inputs]
        parts = []
        for i, section in enumerate(self._sections):
            if not len(rows):
                break
            prediction, score, *tensors = section(tensors)
            last = i == len(self._sections) - 1
            leaves = np.ones(len(rows), bool) if last else score >= self.thresholds[i]
            names = np.full(leaves.sum(), self.exits[i], object)
            parts.append((rows[leaves], prediction[leaves], names, score[leaves]))
            rows, tensors = rows[~leaves], [each[~leaves] for each in tensors]
        found = [np.concatenate(each) for each in zip(*parts, strict=True)]
        order = np.argsort(found[0])
        return tuple(each[order] for each in found[1:])


def read_manifest(folder):
    """Return the checked content of a folder's manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names, limits, parts = (
        manifest.get(key) for key in ("exits", "thresholds", "sections")
    )
    known = (manifest.get("format"), manifest.get("version")) == (FORMAT, VERSION)
    if not (
        known
        and manifest.get("runtime") in ("onnx", "openvino")
        and all(isinstance(each, list) for each in (names, limits, parts))
        and len(names) == len(parts) == len(limits) + 1
        and all(isinstance(each, str) for each in names)
        and all(type(each) in (int, float) for each in limits)
        and all(set(each) == {"model", "files"} for each in parts)
    ):
        raise ValueError(f"{folder / 'manifest.json'} is no manifest of {FORMAT}.")
    for part in parts:
        for name, digest in part["files"].items():
            if pathlib.PurePath(name).name != name:
                raise ValueError(f"The manifest names {name!r}, outside its folder.")
            found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
            if found != digest:
                raise ValueError(f"{folder / name} is not the file that was exported.")
        if part["model"] not in part["files"]:
            raise ValueError(f"The manifest has no digest of {part['model']!r}.")
    return manifest


def load_onnx(path):
    """Return a function from a section's inputs to its outputs, by onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda tensors: session.run(None, dict(zip(names, tensors, strict=True)))


def load_openvino(path):
    """Return a function from a section's inputs to its outputs, by OpenVINO."""
    import openvino

    # Some processors would otherwise compute in bfloat16.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", options)
    return lambda tensors: [
        found.copy() for found in model(list(tensors), share_outputs=False).values()
    ]


if __name__ == "__main__":
    answers, left_at, _ = SectionRunner(sys.argv[1])(np.load(sys.argv[2]))
    for answer, name in zip(answers, left_at, strict=True):
        print(f"class {answer.argmax()} at {name}")
