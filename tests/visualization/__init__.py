"""Tests of keras_selfdistill.visualization."""
