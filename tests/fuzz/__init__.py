"""Mutates files that the library reads, and watches what reading them does.

python -m tests.fuzz --mutations=50000
"""
