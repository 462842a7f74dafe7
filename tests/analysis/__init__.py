"""Tests of keras_selfdistill.analysis."""
