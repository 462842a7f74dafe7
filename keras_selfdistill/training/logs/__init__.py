"""Logs of a wrapper: names, metrics of every exit, means, progress bar. Internal."""

__all__ = [
    "exit_metrics",
    "log_names",
    "logged_model",
    "logs",
    "progress_bar",
    "running_means",
]
