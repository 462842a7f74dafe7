"""Tests of keras_selfdistill.training."""
