"""The learning curve as a drawing: Dice of each published version against its number of labels. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from lib.training.account import Entry, Figures

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 22, 36
DICE_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
FIRST_CLICK, AUTOMATIC = "after 1 click", "without clicks"


@dataclass(frozen=True)
class Point:
    """Dice of one label with one version, on the cases that its run was judged by; `labels` were known to it."""

    version: int
    labels: int
    first_click: float | None
    automatic: float | None


def curve_points(entries: Iterable[Entry]) -> dict[str, list[Point]]:
    """The points of every label, by rising version; the base comes first where the first run was on top of it."""
    found: dict[str, list[Point]] = {}
    made = [entry for entry in entries if entry.makes_version and entry.version is not None]
    if made and made[0].parent == 0:
        _add(found, 0, 0, made[0].before)
    for entry in made:
        _add(found, entry.version or 0, entry.label_count, entry.after)
    return found


def draw_curve(label: str, points: Sequence[Point]) -> str:
    """An SVG of one label's points; hovering over one tells its version, labels and Dice."""
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH} {HEIGHT}",
            "role": "img",
            "class": "curve",
            "aria-label": _summary(label, points),
        },
    )
    most = max([1, *(point.labels for point in points)])
    _draw_axes(svg, most)
    _draw_series(svg, "first-click", FIRST_CLICK, [(point, point.first_click) for point in points], most)
    _draw_series(svg, "automatic", AUTOMATIC, [(point, point.automatic) for point in points], most)
    return ElementTree.tostring(svg, encoding="unicode")


def _add(found: dict[str, list[Point]], version: int, labels: int, figures: Iterable[Figures]) -> None:
    for one in figures:
        first = one.clicks[0] if one.clicks else None
        found.setdefault(one.label, []).append(Point(version, labels, first, one.automatic))


def _summary(label: str, points: Sequence[Point]) -> str:
    told = [
        f"version {point.version}, {point.labels} labels: {point.first_click:.2f}"
        for point in points
        if point.first_click is not None
    ]
    return f"Learning curve of {label}, Dice {FIRST_CLICK}. " + "; ".join(told)


def _draw_axes(svg: ElementTree.Element, most: int) -> None:
    for dice in DICE_TICKS:
        y = _y(dice)
        _line(svg, LEFT, y, WIDTH - RIGHT, y, "grid")
        _text(svg, LEFT - 6, y + 4, f"{dice:g}", "tick end")
    for labels in sorted({0, most // 2, most}):
        _text(svg, _x(labels, most), HEIGHT - BOTTOM + 16, str(labels), "tick middle")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 4, "labels", "tick middle")
    _text(svg, LEFT - 6, 12, "Dice", "tick end")


def _draw_series(
    svg: ElementTree.Element, name: str, told: str, values: Sequence[tuple[Point, float | None]], most: int
) -> None:
    known = [(point, value) for point, value in values if value is not None]
    places = [(_x(point.labels, most), _y(value)) for point, value in known]
    group = ElementTree.SubElement(svg, "g", {"class": name})
    ElementTree.SubElement(group, "polyline", {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in places)})
    for (point, value), (x, y) in zip(known, places, strict=True):
        dot = ElementTree.SubElement(group, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "4"})
        title = ElementTree.SubElement(dot, "title")
        title.text = f"version {point.version}, {point.labels} labels: Dice {value:.3f} {told}"
        if name == "first-click":
            _text(group, x, y - 8, f"v{point.version}", "tick middle")


def _x(labels: int, most: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * labels / most


def _y(dice: float) -> float:
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(dice, 0.0), 1.0))


def _line(parent: ElementTree.Element, x1: float, y1: float, x2: float, y2: float, name: str) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ElementTree.SubElement(parent, "line", {**ends, "class": name})


def _text(parent: ElementTree.Element, x: float, y: float, text: str, name: str) -> None:
    ElementTree.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": name}).text = text
