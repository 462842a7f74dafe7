"""Predictions against labels: data of any form, quality, reliability, significance.

Internal.
"""

__all__ = ["data_adapter", "quality", "reliability", "sample_batch", "significance"]
