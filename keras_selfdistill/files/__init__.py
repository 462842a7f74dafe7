"""Untrusted files: archives and configs are checked before any object is created.

Public: `load_model` and `RefusedFileError`, both exported by the top-level package; the
rest is internal.
"""

__all__ = [
    "archive",
    "atomic",
    "config_budget",
    "config_calls",
    "config_check",
    "digest",
    "model_folder",
    "quantized",
    "regular_files",
    "weights_file",
]
