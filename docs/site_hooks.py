"""What the site adds to MkDocs: formulas as MathML, which needs no script."""

import logging
from typing import Any

from latex2mathml.converter import convert

log = logging.getLogger("mkdocs.hooks.formulas")


def on_config(config: Any) -> Any:
    """Turn fences of language `math` into formulas."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def formula(source: str, *args: Any, **kwargs: Any) -> str:
    """Return LaTeX as MathML; warn of what the converter left as it was."""
    result = convert(source.strip(), display="block")
    if "&</m" in result or "\\" in result:
        log.warning("The converter does not know a part of this formula:\n%s", source)
    return result
