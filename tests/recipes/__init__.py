"""Tests of keras_selfdistill.recipes."""
