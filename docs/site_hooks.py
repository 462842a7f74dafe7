"""What the site adds to MkDocs: formulas as MathML, which needs no script."""

from typing import Any

from latex2mathml.converter import convert


def on_config(config: Any) -> Any:
    """Turn fences of language `math` into formulas."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def formula(source: str, *args: Any, **kwargs: Any) -> str:
    """Return a formula in LaTeX as MathML."""
    return convert(source.strip(), display="block")
