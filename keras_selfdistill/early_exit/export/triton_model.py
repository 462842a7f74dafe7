"""A model of Triton that runs the sections of an early-exit network in order.

`EarlyExit.export(..., format="triton")` copies this file into a model repository, whose
other models are the sections. Triton's Python backend runs it; it needs NumPy, but
neither Keras nor keras_selfdistill. Only samples that have not exited are passed on,
and no section is called when all have.
"""

from __future__ import annotations  # Of classes that Triton adds to pb_utils.

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """The model that clients call; Triton calls its methods."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read `config.pbtxt`: sections, thresholds and names of tensors."""
        config = json.loads(args["model_config"])
        # Others may be Triton's own, whose values are no JSON.
        self._sections, self._thresholds = (
            json.loads(config["parameters"][key]["string_value"])
            for key in ("sections", "thresholds")
        )
        self._inputs = [each["name"] for each in config["input"]]
        if len(self._thresholds) != len(self._sections) - 1:
            raise pb_utils.TritonModelException(
                f"Received: thresholds={self._thresholds}. Expected: "
                f"{len(self._sections) - 1} numbers, one for each section but the last."
            )

    def execute(
        self, requests: list[pb_utils.InferenceRequest]
    ) -> list[pb_utils.InferenceResponse]:
        """Return a response to each of the requests that Triton has batched."""
        try:
            return self._respond(requests)
        except pb_utils.TritonModelException as error:
            if len(requests) > 1:  # The others need not fail with one of them.
                return [self.execute([request])[0] for request in requests]
            failed = pb_utils.TritonError(str(error))
            return [pb_utils.InferenceResponse(error=failed)]

    def _respond(
        self, requests: list[pb_utils.InferenceRequest]
    ) -> list[pb_utils.InferenceResponse]:
        arrays = [
            [
                pb_utils.get_input_tensor_by_name(request, name).as_numpy()
                for name in self._inputs
            ]
            for request in requests
        ]
        ends = np.cumsum([len(first) for first, *_ in arrays])[:-1]
        joined = [np.concatenate(each) for each in zip(*arrays, strict=True)]
        parts = [np.split(each, ends) for each in self._predict(joined)]
        return [
            pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor("prediction", prediction),
                    pb_utils.Tensor("exit", exits),
                    pb_utils.Tensor("score", score),
                ]
            )
            for prediction, exits, score in zip(*parts, strict=True)
        ]

    def _predict(self, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Return predictions, indices of exits and scores of a batch.

        Args:
            tensors: Inputs of the first section, one row for each sample.

        Returns:
            Arrays of shapes `(batch, classes)`, `(batch, 1)` and `(batch, 1)`.
        """
        rows = np.arange(len(tensors[0]))
        parts = []
        for index, section in enumerate(self._sections):
            prediction, score, *tensors = self._run(section, tensors)
            exits = np.ones(len(rows), bool)  # All, at the last section.
            if index < len(self._thresholds):
                exits = score[:, 0] >= self._thresholds[index]
            indices = np.full((exits.sum(), 1), index, np.int32)
            parts.append((rows[exits], prediction[exits], indices, score[exits]))
            rows, tensors = rows[~exits], [each[~exits] for each in tensors]
            if not len(rows):
                break
        order, *found = (np.concatenate(each) for each in zip(*parts, strict=True))
        return [each[np.argsort(order)] for each in found]

    def _run(self, section: dict, tensors: list[np.ndarray]) -> list[np.ndarray]:
        """Return what a section computes: prediction, score, inputs of the next one."""
        inputs = zip(section["inputs"], tensors, strict=True)
        request = pb_utils.InferenceRequest(
            model_name=section["model"],
            requested_output_names=section["outputs"],
            inputs=[pb_utils.Tensor(name, tensor) for name, tensor in inputs],
            # Also where the section runs on a GPU, as NumPy selects the samples.
            preferred_memory=pb_utils.PreferredMemory(
                pb_utils.TRITONSERVER_MEMORY_CPU, 0
            ),
        )
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(
                f"{section['model']}: {response.error().message()}"
            )
        return [
            pb_utils.get_output_tensor_by_name(response, name).as_numpy()
            for name in section["outputs"]
        ]
