"""Charts as SVG: what is drawn of numbers that have no place on a scale."""

from __future__ import annotations

import math
from xml.etree import ElementTree as ET

from qeff_framework.charts import lines, page

SVG = "{http://www.w3.org/2000/svg}"


def drawn(chart: str) -> ET.Element:
    return ET.fromstring(page([chart]))


def test_what_is_infinite_is_marked_at_the_upper_edge():
    chart = drawn(lines("KL", "token", {"text": [1e-3, math.inf, 2e-3], "prompts": []}, logarithmic=True))

    (line, empty) = chart.iter(f"{SVG}polyline")
    assert (len(line.attrib["points"].split()), empty.attrib["points"]) == (2, "")
    crosses = [path for path in chart.iter(f"{SVG}path") if "l6 6" in path.attrib["d"]]
    assert len(crosses) == 1
    assert "x: infinite" in [text.text for text in chart.iter(f"{SVG}text")]


def test_a_single_number_is_a_dot_and_a_wide_scale_has_whole_powers_of_ten():
    chart = drawn(lines("KL", "token", {"text": [1e-3], "prompts": [1e-13, 1e-1]}, logarithmic=True))

    assert len(list(chart.iter(f"{SVG}circle"))) == 1
    ticks = [text.text for text in chart.iter(f"{SVG}text") if (text.text or "").startswith("1e")]
    assert ticks == ["1e-13", "1e-11", "1e-9", "1e-7", "1e-5", "1e-3", "1e-1"]


def test_without_numbers_the_chart_says_so():
    chart = drawn(lines("Errors", "layer", {"keys": []}, logarithmic=True))

    assert "nothing to show" in [text.text for text in chart.iter(f"{SVG}text")]
