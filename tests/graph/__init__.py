"""Tests of keras_selfdistill.graph."""
