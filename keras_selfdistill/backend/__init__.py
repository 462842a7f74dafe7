"""Backend-specific code: compiling, finite checks, rows, batch norm, random state.

Internal.
"""

__all__ = ["batch_norm", "compiled", "finite", "random_state", "tensors"]
