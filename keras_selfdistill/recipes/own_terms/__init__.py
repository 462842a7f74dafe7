"""Recipes with loss terms of their own beside those of the exits. Internal."""

__all__ = [
    "all_exits",
    "bake",
    "copied_base",
    "mean_teacher",
    "mix_skd",
    "past_self",
    "rotation_exits",
    "teacher_free",
]
