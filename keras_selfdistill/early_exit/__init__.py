"""`EarlyExit`: each sample exits at the first exit with a high enough score.

Public: `EarlyExit`, exported by the top-level package, and the classes of the objects
that its methods return; the rest is internal.
"""

__all__ = [
    "calibration",
    "cascade",
    "early_exit",
    "exited",
    "export",
    "file",
    "result",
    "scheduler",
    "scoring",
    "section_models",
    "serving",
    "temperature",
    "thresholds",
]
