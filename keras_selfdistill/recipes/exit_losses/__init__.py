"""Recipes that weigh each exit's label, soft-target and hint loss. Internal."""

__all__ = ["attention_byot", "byot", "deep_supervision", "teskd"]
