"""Tests of the whole: models, backends, devices, long runs."""
