"""Tests of keras_selfdistill.networks."""
