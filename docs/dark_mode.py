"""Pictures without a background, whose colours turn where the page is dark.

The lightness of each colour is inverted and its hue stays. A browser decides by the
colour scheme of the page that shows the picture, GitHub's and this site's included.
"""

import re

STYLE = """<style>@media (prefers-color-scheme: dark) {
  svg {filter: invert(1) hue-rotate(180deg)}
}</style>
"""


def with_dark_mode(svg: str) -> str:
    """Return an SVG, which has no background, with a rule for dark pages."""
    return re.sub(r"<svg\b[^>]*>\n", lambda tag: tag[0] + STYLE, svg, count=1)
