"""The parts of train_distributed.py: engines, the processes of one machine, a worker.

Imports no Keras by itself: the engine decides the backend.
"""
