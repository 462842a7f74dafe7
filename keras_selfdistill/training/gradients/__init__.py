"""Gradients of the weights that exits share. Internal."""

__all__ = ["equilibrium", "section_gradients"]
