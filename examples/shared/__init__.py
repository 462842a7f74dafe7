"""What several examples and benchmarks share: images, flags, files of a run, a page.

Imports no Keras by itself, so that a program can still choose its backend.
"""
