"""Tests of keras_selfdistill.files."""
