"""Draw the badges of the README from what setup.py and LICENSE say.

python docs/draw_badges.py
"""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
_LETTER, _PADDING = 6.6, 7  # Pixels, of Verdana at 11 pixels.


def badges() -> dict[str, str]:
    """Return the SVG of each badge, by the name of its file."""
    setup = (ROOT / "setup.py").read_text()
    python = re.search(r'python_requires="(.+?)"', setup)[1]
    keras = re.search(r'"keras(>=.+?)"', setup)[1]
    licence = re.search(r'license="(.+?)"', setup)[1]
    if "Apache License" not in (ROOT / "LICENSE").read_text():
        raise ValueError(f"LICENSE is not the text of {licence}.")
    return {
        "badge_python.svg": _badge("python", python.replace(">=", "≥ ")),
        "badge_keras.svg": _badge("keras", keras.replace(">=", "≥ ")),
        "badge_license.svg": _badge("license", licence),
    }


def _badge(name, value):
    left, right = (round(len(text) * _LETTER) + 2 * _PADDING for text in (name, value))
    texts = "".join(
        f'<text x="{x:g}" y="14">{text}</text>'
        for x, text in ((left / 2, name), (left + right / 2, value))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" '
        f'role="img" aria-label="{name}: {value}">'
        f'<rect width="{left + right}" height="20" rx="3" fill="#555"/>'
        f'<rect x="{left}" width="{right}" height="20" rx="3" fill="#0072B2"/>'
        f'<rect x="{left}" width="4" height="20" fill="#0072B2"/>'
        '<g fill="#fff" text-anchor="middle" font-size="11" '
        f'font-family="Verdana,DejaVu Sans,sans-serif">{texts}</g></svg>\n'
    )


if __name__ == "__main__":
    for file_name, content in badges().items():
        (ROOT / "docs" / file_name).write_text(content)
