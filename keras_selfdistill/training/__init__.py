"""`SelfDistiller`: compilation, the training step of each backend, losses and logs.

Public: `SelfDistiller`, exported by the top-level package; the rest is internal.
"""

__all__ = [
    "batch_loss",
    "data_checks",
    "distiller",
    "external_teacher",
    "extra_terms",
    "gradients",
    "logs",
    "nonfinite",
    "objective",
    "saved_wrapper",
    "train_step",
    "trainer",
    "views",
]
