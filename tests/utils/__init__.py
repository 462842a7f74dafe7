"""Tests of keras_selfdistill.utils."""
