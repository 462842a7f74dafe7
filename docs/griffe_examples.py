"""Let mkdocstrings read the sections that Google's style calls `Example`."""

from typing import Any

import griffe


class Examples(griffe.Extension):
    """Rename `Example:` to `Examples:`, the only name that Griffe knows."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rename the section of one docstring."""
        if obj.docstring:
            text = obj.docstring.value
            obj.docstring.value = text.replace("\nExample:\n", "\nExamples:\n")
