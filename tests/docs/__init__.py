"""Tests of the documentation and the tutorials."""
