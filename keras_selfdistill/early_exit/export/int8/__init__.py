"""Artifacts in int8 for small devices. Internal."""

__all__ = [
    "branches",
    "every_exit",
    "flatbuffer",
    "litert",
    "memory",
    "onnx_sections",
    "report",
    "samples",
    "writing",
]
