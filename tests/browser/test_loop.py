"""The whole loop as an annotator goes through it, from the study list to the case that the strategy chose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_loop import LABELS, LOOP_SETTINGS, answer_of, whole_loop

pytestmark = [pytest.mark.server, pytest.mark.timeout(1800)]


def test_from_the_study_list_to_the_next_case(
    start_station: Callable[..., Any], open_viewer: Callable[..., Any], tmp_path: Path
) -> None:
    at = start_station(**LOOP_SETTINGS)
    at.wait_for_images(8)
    viewer = open_viewer(at)
    whole_loop(at, viewer, "PHANTOM-003", tmp_path / "cold")

    viewer.run_automatic()
    viewer.shot("next-case-without-a-click")
    automatic = answer_of(at, viewer.series(), "medsa_auto", {})
    assert automatic.any()
    for label, number in viewer.segments().items():
        assert np.array_equal(viewer.labelmap() == number, automatic == LABELS[label])
