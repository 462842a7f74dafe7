"""Draw `exits.svg`: a base with three exits, and who teaches whom.

python docs/draw_exits.py
"""

import pathlib

BASE, HEAD, TEACH, INK = "#0072B2", "#009E73", "#D55E00", "#333333"
STEP, TOP, HEIGHT = 150, 56, 54


def box(x, y, width, lines, color):
    """Return a rounded box with centred lines of text."""
    center = x + width / 2
    text = "".join(
        f'<text x="{center}" y="{y + HEIGHT / 2 + 5 + 18 * (i - (len(lines) - 1) / 2)}"'
        f' fill="white" text-anchor="middle">{line}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="8"'
        f' fill="{color}"/>{text}'
    )


def arrow(points, color, dashed=False):
    """Return a line with a head through the given points."""
    path = " ".join(f"{x},{y}" for x, y in points)
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"'
        f'{dash} marker-end="url(#{color[1:]})"/>'
    )


def label(x, y, text, color=INK, anchor="middle"):
    """Return a line of text."""
    return f'<text x="{x}" y="{y}" fill="{color}" text-anchor="{anchor}">{text}</text>'


def marker(color):
    """Return the definition of an arrow head."""
    return (
        f'<marker id="{color[1:]}" viewBox="0 0 10 10" refX="9" refY="5"'
        ' markerWidth="7" markerHeight="7" orient="auto-start-reverse">'
        f'<path d="M0 0L10 5L0 10z" fill="{color}"/></marker>'
    )


def draw():
    """Return the picture as SVG."""
    parts = [label(18, TOP + HEIGHT / 2 + 5, "images", anchor="start")]
    parts.append(arrow([(80, TOP + 27), (98, TOP + 27)], INK))
    for i in range(4):
        x = 100 + STEP * i
        parts.append(box(x, TOP, 110, [f"section {i + 1}"], BASE))
        if i == 3:
            break
        tap = x + 130
        parts.append(arrow([(x + 110, TOP + 27), (x + STEP - 2, TOP + 27)], INK))
        parts.append(arrow([(tap, TOP + 27), (tap, 158)], HEAD))
        parts.append(f'<circle cx="{tap}" cy="{TOP + 27}" r="5" fill="{HEAD}"/>')
        parts.append(label(tap, TOP - 12, f"tap {i + 1}", HEAD))
        parts.append(box(tap - 45, 160, 90, ["head"], HEAD))
        parts.append(arrow([(tap, 214), (tap, 243)], HEAD))
        parts.append(label(tap, 262, f"exit_{i + 1}"))
    parts.append(arrow([(660, TOP + 27), (698, TOP + 27)], INK))
    parts.append(box(700, TOP, 110, ["classifier"], BASE))
    parts.append(arrow([(755, TOP + HEIGHT), (755, 243)], INK))
    parts.append(label(755, 262, "final"))
    for i in range(3):
        start, end = 740 - 8 * i, 230 + STEP * i
        depth = 326 - 18 * i
        points = [(start, 270), (start, depth), (end, depth), (end, 272)]
        parts.append(arrow(points, TEACH, dashed=True))
    parts.append(label(765, 312, "soft targets", TEACH, anchor="start"))
    parts.append(label(765, 330, "and hints", TEACH, anchor="start"))
    body = "\n".join(parts)
    markers = "".join(marker(color) for color in (INK, HEAD, TEACH))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 870 345"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="15">\n'
        '<rect width="870" height="345" fill="white"/>\n'
        f"<defs>{markers}</defs>\n{body}\n</svg>\n"
    )


if __name__ == "__main__":
    pathlib.Path(__file__).with_name("exits.svg").write_text(draw())
