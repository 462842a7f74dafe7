"""`SelfDistiller`: compile, one training step for each backend, losses, logs.

Public: `SelfDistiller`, as `keras_selfdistill.SelfDistiller`; the rest is internal.
"""

__all__ = [
    "data_checks",
    "distiller",
    "exit_metrics",
    "external_teacher",
    "log_names",
    "logs",
    "nonfinite",
    "objective",
    "section_gradients",
    "train_step",
]
