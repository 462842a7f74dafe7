"""Tests of keras_selfdistill.exits."""
