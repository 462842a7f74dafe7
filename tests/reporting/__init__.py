"""Tests of keras_selfdistill.reporting."""
