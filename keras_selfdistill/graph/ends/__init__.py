"""The end of a base: its logits, its last feature, its activation. Internal."""

__all__ = ["base_end", "check", "logits", "pre_activation"]
