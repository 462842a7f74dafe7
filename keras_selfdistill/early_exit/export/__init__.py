"""Artifacts that stop early without this library. Internal."""

__all__ = [
    "deciding",
    "earlier_export",
    "exported",
    "int8",
    "scored_section",
    "section_runner",
    "triton_model",
    "triton_repository",
    "writers",
]
