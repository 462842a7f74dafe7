"""The parts of train_images.py: the folder, its split, batches, training, results."""
