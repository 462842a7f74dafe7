"""What each backend does in its own way: compiling, rows of tensors, random state.

Internal.
"""

__all__ = ["batch_norm", "compiled", "random_state", "tensors"]
