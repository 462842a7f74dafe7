"""Tests of keras_selfdistill.backend."""
