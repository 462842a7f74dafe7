"""Backend-specific code: compiling, rows of tensors, batch norm, random state.

Internal.
"""

__all__ = ["batch_norm", "compiled", "random_state", "tensors"]
