"""Let mkdocstrings read this package's docstrings as they are meant."""

from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Google's section `Example`, and builders that a decorator makes."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section: Griffe knows `Examples` alone."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Forget what a function of `networks` returns before it is decorated."""
        if any(str(each.value) == "network" for each in func.decorators):
            func.returns = None
