"""Tests of keras_selfdistill.losses."""
