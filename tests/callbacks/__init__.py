"""Tests of keras_selfdistill.callbacks."""
