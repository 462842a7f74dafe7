"""Tests of keras_selfdistill.early_exit."""
