"""Tests of keras_selfdistill.heads."""
