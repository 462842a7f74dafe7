"""Parts of serve.py: images of HTTP requests."""
