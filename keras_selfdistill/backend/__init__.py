"""Backend-specific code: compiling, tensors, batch norm, random state, processes.

Internal.
"""

__all__ = ["batch_norm", "compiled", "finite", "processes", "random_state", "tensors"]
