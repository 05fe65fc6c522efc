"""What benchmarks/training.py reports, from made results; and that nobody is both trained on and tested."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from loop_cases import CARDIAC_TUNED_ON, HIPPOCAMPUS_TUNED_ON  # noqa: E402 (a folder, not a package)
from training_curves import curve_figures, curves, learned_figures  # noqa: E402
from training_data import cardiac, hippocampus  # noqa: E402
from training_kills import Kills, figures_of  # noqa: E402
from training_runs import _of_another  # noqa: E402


@pytest.fixture
def study() -> Any:
    return SimpleNamespace(
        name="hippocampus_mr", task="hippocampus", labelled=tuple("abcdefghij"), tested=("t",), counts=(5, 10)
    )


def kept(out: Path, study: Any, method: str, count: int, seed: int, minutes: float, **dice: float) -> None:

    name = f"{study.name}-{method}-{count}-{seed}-{minutes:g}".replace(" ", "_")
    content = {"dice": {key.replace("_", " "): [value] for key, value in dice.items()}, "steps": 7}
    (out / f"{name}.json").write_text(json.dumps(content))


def by_name(figures: Any) -> dict[str, Any]:
    return {figure.name: figure for figure in figures}


def test_gain_and_bars_of_the_long_training(study: Any, tmp_path: Path) -> None:

    kept(tmp_path, study, "untrained", 0, 0, 0, **{"1_click": 0.4, "no_clicks": 0.0})
    for seed, one in enumerate((0.8, 0.84)):
        kept(tmp_path, study, "adapters", 10, seed, 2, **{"1_click": one, "no_clicks": 0.6})
    found = by_name(learned_figures(study, tmp_path, 2.0, 2))
    gain = found["hippocampus_mr: volume Dice, 1 click, gain"]
    assert (gain.value, gain.holds) == (pytest.approx(0.42), True)
    assert found["hippocampus_mr: volume Dice, 1 click, after (aim)"].holds is False
    assert found["hippocampus_mr: volume Dice, no clicks, after"].holds is False


def test_adapters_are_compared_with_both_others_where_labels_are_few(study: Any, tmp_path: Path) -> None:

    for count, ours in ((5, 0.7), (10, 0.8)):
        kept(tmp_path, study, "adapters", count, 0, 1, **{"1_click": 0.9, "no_clicks": ours})
        kept(tmp_path, study, "full fine-tuning", count, 0, 1, **{"1_click": 0.85, "no_clicks": 0.75})
        kept(tmp_path, study, "UNet", count, 0, 1, no_clicks=0.6)
    figures = curve_figures(study, tmp_path, 1.0, 1)
    found = by_name(figures)
    assert found["hippocampus_mr: 5 labels, no clicks: adapters above full fine-tuning"].holds is False
    assert found["hippocampus_mr: 10 labels, no clicks: adapters above full fine-tuning"].holds is True
    assert found["hippocampus_mr: 5 labels, no clicks: adapters above UNet"].value == pytest.approx(0.1)
    assert "hippocampus_mr: 5 labels, 1 click: adapters above UNet" not in found
    assert curves(figures, "hippocampus_mr")["adapters", "no clicks"] == [(5, 0.7), (10, 0.8)]


def test_a_wrong_label_has_the_shape_of_the_case_and_not_its_content() -> None:

    case, other = (SimpleNamespace(label=np.zeros(shape, np.uint8)) for shape in ((10, 12, 8), (14, 9, 8)))
    case.label[2:5, 3:6, 2:4] = 1
    other.label[1:4, 1:4, 1:3] = 1
    wrong = _of_another(case, other, mirrored=True)  # type: ignore[arg-type]
    assert wrong.shape == case.label.shape
    assert wrong.any()
    assert not (wrong & case.label).any()
    plain = _of_another(case, other, mirrored=False)  # type: ignore[arg-type]
    assert plain.shape == case.label.shape
    assert (plain & case.label).any(), "it lies where the other's lay"
    assert (plain != case.label).any()


def test_kills_that_broke_nothing_hold() -> None:

    good = by_name(figures_of(Kills(kills=100, runs=20, resumed=30, published=5)))
    assert all(figure.holds for figure in good.values())
    bad = by_name(figures_of(Kills(kills=100, broken=["v0001"], stray=["x.part"])))
    assert not any(figure.holds for name, figure in bad.items() if "moments" not in name)


@pytest.mark.data
def test_nobody_is_both_labelled_and_tested(data_dir: Path) -> None:

    brains, hearts = hippocampus(data_dir), cardiac(data_dir)
    assert (len(brains.labelled), len(brains.tested)) == (40, 60)
    assert (len(hearts.labelled), len(hearts.tested)) == (12, 12)
    assert not set(brains.labelled) & set(brains.tested)
    assert not set(hearts.labelled) & set(hearts.tested)
    assert not set(brains.tested) & set(HIPPOCAMPUS_TUNED_ON)
    assert not set(hearts.tested) & set(CARDIAC_TUNED_ON)
    (case,) = brains.load(brains.tested[:1])
    assert case.label.shape == case.volume.shape_ijk
    assert set(np.unique(case.label)) == {0, 1}
    assert len(hearts.load(hearts.tested[:1])) == 2
