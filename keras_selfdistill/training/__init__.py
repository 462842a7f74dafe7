"""`SelfDistiller`: compile, one training step for each backend, losses, logs.

Public: `SelfDistiller`, as `keras_selfdistill.SelfDistiller`; the rest is internal.
"""

__all__ = [
    "batch_loss",
    "data_checks",
    "distiller",
    "external_teacher",
    "logs",
    "nonfinite",
    "objective",
    "progress_bar",
    "saved_wrapper",
    "section_gradients",
    "train_step",
    "trainer",
]
