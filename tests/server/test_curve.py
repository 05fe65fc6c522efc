"""The learning curve: its points from records, and the drawing."""

from typing import Any
from xml.etree import ElementTree

from lib.server.curve import Point, curve_points, draw_curve
from lib.training.account import explain

SVG = "{http://www.w3.org/2000/svg}"


def record(version: int | None, trained: int, dice: float | None, **more: Any) -> dict[str, Any]:
    def scored(value: float | None) -> list[dict[str, Any]]:
        if value is None:
            return []
        return [
            {"case_id": "v", "label": label, "clicks": [value, 1.0], "automatic": value / 2}
            for label in ("liver", "spleen")
        ]

    return {
        "decision": "refused" if version is None else "published",
        "version": version,
        "champion": 0,
        "trained": [f"t{number}" for number in range(trained)],
        "validated": ["v", "t0"],  # of a run that leaves one out, trained cases validate, too
        "scores": {"champion": scored(0.25), "candidate": scored(dice)},
        **more,
    }


def test_one_point_for_every_published_version_after_that_of_the_base() -> None:
    records = [
        record(None, 1, 0.3),
        record(1, 2, 0.5),
        record(2, 5, 0.75),
        {"decision": "rolled back", "version": 1},
    ]
    points = curve_points(map(explain, records))
    assert points == {
        label: [Point(0, 0, 0.25, 0.125), Point(1, 3, 0.5, 0.25), Point(2, 6, 0.75, 0.375)]
        for label in ("liver", "spleen")
    }


def test_records_of_older_medsa_have_no_point() -> None:
    assert curve_points([explain({"version": 1}), explain({}), explain(record(2, 2, None))]) == {}


def test_the_drawing_tells_version_labels_and_dice() -> None:
    name = "<script>alert(1)</script>"
    text = draw_curve(name, [Point(0, 0, 0.25, None), Point(3, 12, 1.0, 0.5)])
    assert "<script" not in text
    svg = ElementTree.fromstring(text)
    assert name in svg.attrib["aria-label"]
    assert [title.text for title in svg.iter("title")] == [
        "version 0, 0 labels: Dice 0.250 after 1 click",
        "version 3, 12 labels: Dice 1.000 after 1 click",
        "version 3, 12 labels: Dice 0.500 without clicks",
    ]
    heights = [float(dot.attrib["cy"]) for dot in svg.iter("circle")]
    assert heights[1] < heights[2] < heights[0]
    places = [float(dot.attrib["cx"]) for dot in svg.iter("circle")]
    assert places[0] < places[1] == places[2]


def test_versions_without_any_label_can_be_drawn() -> None:
    svg = ElementTree.fromstring(draw_curve("liver", [Point(0, 0, 0.0, 0.0)]))
    assert len(list(svg.iter("circle"))) == 2
