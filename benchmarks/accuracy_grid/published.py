"""What the papers report for CIFAR-100, to stand beside what the benchmark gives.

Their public codes keep the epoch that is best on the test images; the benchmark
evaluates the last one.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
    """Accuracies on the test images, in per cent.

    Attributes:
        plain: Accuracy of the network, trained without exits.
        exits: Accuracies of the shallow exits.
        final: Accuracy of the final exit.
        ensemble: Accuracy of all exits together; `None` where none is given.
    """

    plain: float
    exits: tuple[float, ...]
    final: float
    ensemble: float | None

    def __str__(self):
        """Shows the row in one cell of a table."""
        shown = " / ".join(f"{each:.2f}" for each in (*self.exits, self.final))
        if self.ensemble is not None:
            shown += f", ensemble {self.ensemble:.2f}"
        return f"{shown} (plain {self.plain:.2f})"


# By the names in `keras_selfdistill.networks`.
PUBLISHED = {
    # Zhang et al., ICCV 2019, table 2.
    "byot": {
        "resnet18": Row(77.09, (67.85, 74.57, 78.23), 78.64, 79.67),
        "resnet50": Row(77.68, (68.23, 74.21, 75.23), 80.56, 81.04),
        "resnet101": Row(77.98, (69.45, 77.29, 81.17), 81.23, 82.03),
        "resnet152": Row(79.21, (68.84, 78.72, 81.43), 81.61, 82.29),
        "vgg19_bn": Row(64.47, (63.59, 67.04, 68.03), 67.73, 68.54),
        "resnext29_8": Row(81.29, (71.15, 79.00, 81.48), 81.51, 81.90),
        "wide_resnet20_8": Row(79.76, (68.85, 78.15, 80.98), 80.92, 81.38),
        "wide_resnet44_8": Row(79.93, (72.54, 81.15, 81.96), 82.09, 82.61),
        "wide_resnet28_12": Row(80.07, (71.21, 80.86, 81.58), 81.59, 82.09),
        # The paper prints the same exits 2 and 3 as for "wide_resnet20_8".
        "pyramidnet101_240": Row(81.12, (69.23, 78.15, 80.98), 82.30, 83.51),
    },
    # Li et al., 2021; its students are dropped.
    "teskd": {"resnet18": Row(74.41, (), 79.15, None)},
}


def published(method: str, model: str) -> str:
    """Returns what was published for a method and a network, `–` for nothing."""
    if method == "plain":
        row = PUBLISHED["byot"].get(model)
        return f"{row.plain:.2f}" if row else "–"
    return str(PUBLISHED.get(method, {}).get(model, "–"))
