"""What the site adds to MkDocs: formulas as MathML, and long names that may break."""

import logging
import re
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.formulas")
CELL = re.compile(r"<t[dh]\b.*?</t[dh]>", re.DOTALL)
TEXT = re.compile(r">[^<]+<")
NAME = re.compile(r"(?<=\w)[_/.(=](?=[^\W\d]|[\"'(\[])")


def on_config(config: Any) -> Any:
    """Turn fences of language `math` into formulas."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def formula(source: str, *args: Any, **kwargs: Any) -> str:
    """Return LaTeX as MathML in a box; warn of what the converter left as it was."""
    result = convert(source.strip(), display="block")
    if "&</m" in result or "\\" in result:
        log.warning("The converter does not know a part of this formula:\n%s", source)
    return f'<div class="formula">{result}</div>'


def on_post_page(output: str, **kwargs: Any) -> str:
    """Let long names in tables break behind `_`, `/`, `.`, `(` and `=`, and ± nowhere.

    Pages get this last, so that the search index has the names whole.
    """

    def breakable(text: re.Match) -> str:
        parts = NAME.sub(r"\g<0><wbr>", text[0])
        return parts.replace("± ", "±&nbsp;")

    return CELL.sub(lambda cell: TEXT.sub(breakable, cell[0]), output)
