"""Logs of a wrapper: names, metrics of every exit, means of the loss terms."""

__all__ = ["exit_metrics", "log_names", "logged_model", "logs"]
