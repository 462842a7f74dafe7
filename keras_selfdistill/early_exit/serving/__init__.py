"""Requests that many threads submit, batched by one background thread. Internal."""

__all__ = ["request", "served", "worker"]
