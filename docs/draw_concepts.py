"""Draw `teachers.svg` (who teaches whom) and `early_exit.svg` (who exits where).

python docs/draw_concepts.py
"""

import pathlib

from dark_mode import with_dark_mode

BASE, HEAD, TEACH, INK = "#0072B2", "#009E73", "#D55E00", "#333333"
EXITS = ["exit_1", "exit_2", "exit_3", "final"]
# Who learns from whom, by the position of the exit; "all" is their mean.
TEACHERS = {
    "deepest": {0: [3], 1: [3], 2: [3]},
    "next": {0: [1], 1: [2], 2: [3]},
    "dense": {0: [1, 2, 3], 1: [2, 3], 2: [3]},
    "ensemble": {0: ["all"], 1: ["all"], 2: ["all"]},
}


def text(x, y, content, color=INK, weight="normal"):
    """Return a centred line of text."""
    return (
        f'<text x="{x}" y="{y}" fill="{color}" text-anchor="middle"'
        f' font-weight="{weight}">{content}</text>'
    )


def box(x, y, width, content, color):
    """Return a rounded box around a centre, with a line of text."""
    return (
        f'<rect x="{x - width / 2}" y="{y - 16}" width="{width}" height="32" rx="6"'
        f' fill="{color}"/>' + text(x, y + 5, content, "white")
    )


def line(path, color, width=2):
    """Return a path with an arrow head."""
    return (
        f'<path d="{path}" fill="none" stroke="{color}" stroke-width="{width}"'
        f' marker-end="url(#{color[1:]})"/>'
    )


def picture(width, height, parts):
    """Return an SVG of its parts."""
    markers = "".join(
        f'<marker id="{color[1:]}" viewBox="0 0 10 10" refX="9" refY="5"'
        ' markerWidth="12" markerHeight="12" markerUnits="userSpaceOnUse"'
        f' orient="auto"><path d="M0 0L10 5L0 10z" fill="{color}"/></marker>'
        for color in (HEAD, TEACH, INK)
    )
    return with_dark_mode(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="15">\n'
        f"<defs>{markers}</defs>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def teacher_arrow(x, y, learner, teacher):
    """Return the arrow from a teacher to a learner, both by position."""
    end = x + 95 * learner
    if teacher == "all":
        return line(f"M{end} {y + 70}V{y + 20}", TEACH)
    start = x + 95 * teacher + 14 * (learner - 1) + 14
    depth = y + 28 + 26 * (teacher - learner)
    end += 15 * (teacher - learner - 2) - 14
    return line(
        f"M{start} {y + 18}C{start} {depth} {end} {depth} {end} {y + 20}", TEACH
    )


def teachers():
    """Return the picture of the four values of a recipe's `teacher`."""
    parts = []
    for number, (name, taught) in enumerate(TEACHERS.items()):
        x, y = 75 + 430 * (number % 2), 75 + 170 * (number // 2)
        parts.append(text(x + 142, y - 35, f'teacher="{name}"', weight="bold"))
        for i, exit_name in enumerate(EXITS):
            color = BASE if exit_name == "final" else HEAD
            parts.append(box(x + 95 * i, y, 74, exit_name, color))
        if name == "ensemble":
            parts.append(
                f'<rect x="{x - 37}" y="{y + 70}" width="359" height="30" rx="6"'
                f' fill="none" stroke="{TEACH}" stroke-width="2"/>'
            )
            parts.append(text(x + 142, y + 90, "mean of all logits", TEACH))
        parts += [
            teacher_arrow(x, y, learner, teacher)
            for learner, those in taught.items()
            for teacher in those
        ]
    return picture(870, 370, parts)


def early_exit():
    """Return the picture of samples that exit, six in front and one at the end."""
    parts, counts = [], [6, 3, 2]
    for i, count in enumerate(counts):
        x, top = 60 + 260 * i, 66 if count > 3 else 78
        for j in range(count):
            row, column = divmod(j, 3)
            parts.append(
                f'<circle cx="{x - 22 + 22 * column}" cy="{top + 24 * row}" r="8"'
                f' fill="{INK}"/>'
            )
        parts.append(line(f"M{x + 38} 78H{x + 68}", INK))
        parts.append(box(x + 125, 78, 110, f"section {i + 1}", BASE))
        last = i == len(counts) - 1
        if not last:
            parts.append(line(f"M{x + 182} 78H{x + 216}", INK))
        parts.append(line(f"M{x + 125} 96V134", INK if last else HEAD))
        name = "final" if last else f"exit_{i + 1}"
        parts.append(box(x + 125, 152, 74, name, BASE if last else HEAD))
        parts.append(line(f"M{x + 125} 170V206", INK if last else HEAD))
        gone = count - ([*counts, 0])[i + 1]
        for j in range(gone):
            center = x + 125 + 22 * (j - (gone - 1) / 2)
            color = INK if last else HEAD
            parts.append(f'<circle cx="{center}" cy="222" r="8" fill="{color}"/>')
        words = "all remaining" if last else "score ≥ threshold: exit"
        parts.append(text(x + 125, 254, words))
    parts.append(text(60, 40, "samples"))
    for i in (1, 2):
        parts.append(text(60 + 260 * i, 40, "below the threshold"))
    return picture(780, 270, parts)


if __name__ == "__main__":
    folder = pathlib.Path(__file__).parent
    (folder / "teachers.svg").write_text(teachers(), encoding="utf-8")
    (folder / "early_exit.svg").write_text(early_exit(), encoding="utf-8")
