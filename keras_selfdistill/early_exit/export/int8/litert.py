"""Write an early-exit network in int8 as one LiteRT file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_selfdistill.early_exit.export.deciding import signature
from keras_selfdistill.early_exit.export.int8.branches import branched
from keras_selfdistill.early_exit.export.int8.every_exit import (
    convert_network,
    convert_scores,
)
from keras_selfdistill.early_exit.export.int8.flatbuffer import joined
from keras_selfdistill.early_exit.export.int8.memory import (
    float_operators,
    section_sizes,
)
from keras_selfdistill.early_exit.export.int8.report import SectionSize, warn_of_floats
from keras_selfdistill.early_exit.export.int8.samples import Scored
from keras_selfdistill.early_exit.export.scored_section import ScoredSection
from keras_selfdistill.early_exit.scoring import Scorer
from keras_selfdistill.utils.optional_packages import optional_module


class LiteRTNetwork:
    """An early-exit network in int8, before its thresholds are known.

    Args:
        sections: Sections of the network, shallow to deep, that return logits.
        scorer: Computes predictions and scores from logits.
        classes: Number of classes.
        samples: Representative samples, one array for each input of the first section.

    Attributes:
        float_operators: Kinds of operators without an int8 form.

    Raises:
        ValueError: The converter refuses the network, or leaves its weights in float32.
    """

    def __init__(
        self,
        sections: Sequence[ScoredSection],
        scorer: Scorer,
        classes: int,
        samples: Sequence[np.ndarray],
    ):
        self._scorer = scorer
        self._classes = classes
        self._names = [spec.name for spec in signature(sections[0].section.inputs)]
        self._network = convert_network(sections, samples)
        self.float_operators = _checked(float_operators(self._network))

    def run_all(self, inputs: Sequence[np.ndarray]) -> list[Scored]:
        """Return the predictions and scores of every exit, by LiteRT's interpreter.

        Args:
            inputs: Samples, one array for each input of the first section.
        """
        module = optional_module("ai_edge_litert.interpreter", "recalibrate=", "export")
        exits = self._scorer.exits
        interpreter = module.Interpreter(
            model_content=self._every_exit([0.0] * (exits - 1))
        )
        run = interpreter.get_signature_runner()
        details = run.get_input_details()
        arrays = {
            name: as_input(values, details[name])
            for name, values in zip(self._names, inputs, strict=True)
        }
        rows = [
            run(**{name: values[row : row + 1] for name, values in arrays.items()})
            for row in range(len(inputs[0]))
        ]
        return [
            (_column(rows, f"prediction_{i}"), _column(rows, f"score_{i}"))
            for i in range(exits)
        ]

    def file(self, limits: Sequence[float]) -> tuple[bytes, tuple[SectionSize, ...]]:
        """Return the file, and the size of each section.

        Args:
            limits: Thresholds of all exits but the last.
        """
        content, sections = branched(self._every_exit(limits))
        return content, tuple(section_sizes(content, sections))

    def _every_exit(self, limits: Sequence[float]) -> bytes:
        scores = convert_scores(self._scorer, self._classes, limits)
        return joined(self._network, scores)


def as_input(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Return samples as an input of an int8 model.

    Args:
        values: Samples, as the float network takes them.
        details: What LiteRT's interpreter says of the input.

    Example:
        >>> details = {"dtype": np.int8, "quantization": (0.5, -128)}
        >>> as_input(np.array([0.0, 1.0, 1000.0]), details).tolist()
        [-128, -126, 127]
    """
    if details["dtype"] != np.int8:
        return values.astype(details["dtype"])
    scale, zero = details["quantization"]
    return np.clip(np.round(values / scale) + zero, -128, 127).astype("int8")


def _checked(floats: list[str]) -> tuple[str, ...]:
    """Refuse weights in float32; warn of other operators without an int8 form."""
    weighted = [name for name in floats if "CONV" in name or "CONNECTED" in name]
    if weighted:
        raise ValueError(
            "This network cannot be quantised to int8: TensorFlow's converter left "
            f"weights in float32. Received: {', '.join(weighted)} in float32. "
            "Expected: layers whose inputs and outputs have an int8 form. Export "
            "without quantize=, or replace the layers before and behind them."
        )
    warn_of_floats(floats)
    return tuple(floats)


def _column(rows: Sequence[dict[str, np.ndarray]], name: str) -> np.ndarray:
    return np.concatenate([row[name] for row in rows])
