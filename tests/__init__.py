"""Tests of keras_selfdistill."""
