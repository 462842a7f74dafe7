"""Tests of keras_selfdistill.costs."""
