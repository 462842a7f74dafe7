"""Files saved before the modules moved into packages load, and predict as they did."""

import json
import pathlib
import shutil

import keras
import numpy as np

import keras_selfdistill as ksd

SAVED = pathlib.Path(__file__).with_name("saved")
EXPECTED = json.loads((SAVED / "expected.json").read_text())
IMAGES = np.array(EXPECTED["x"], "float32")


def test_a_wrapper_saved_before_loads_and_trains_on(tmp_path):
    shutil.copy(SAVED / "wrapper.keras", tmp_path)
    for load in (keras.saving.load_model, ksd.load_model):
        model = load(tmp_path / "wrapper.keras")
        for name, output in model.predict(IMAGES, verbose=0).items():
            expected = EXPECTED["outputs"][name]
            np.testing.assert_allclose(output, expected, atol=1e-5)
        model.fit(IMAGES, np.array([0, 1, 2, 0]), verbose=0)


def test_an_early_exit_saved_before_loads():
    fast = ksd.EarlyExit.load(SAVED / "fast.earlyexit")
    assert fast.thresholds == EXPECTED["thresholds"]
    result = fast.predict(IMAGES)
    assert result.exits.tolist() == EXPECTED["exits"]
    for sample, name in enumerate(EXPECTED["exits"]):
        expected = EXPECTED["outputs"][name][sample]
        np.testing.assert_allclose(result.predictions[sample], expected, atol=1e-5)
