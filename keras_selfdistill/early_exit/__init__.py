"""`EarlyExit`: samples exit at the first exit that is sure of them.

Public: `EarlyExit`, as `keras_selfdistill.EarlyExit`, and what its methods return; the
rest is internal.
"""

__all__ = [
    "calibration",
    "cascade",
    "early_exit",
    "export",
    "file",
    "result",
    "scheduler",
    "scoring",
    "section_models",
    "thresholds",
]
