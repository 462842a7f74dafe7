"""Logs of a wrapper: names, metrics of every exit, means of the terms. Internal."""

__all__ = ["exit_metrics", "log_names", "logged_model", "logs"]
