"""What benchmarks/active_learning.py reports, from made runs; and a simulation of seconds on made images."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import active_learning  # noqa: E402 (a folder, not a package)
import active_learning_rounds  # noqa: E402
from active_learning_data import PoolStudy, cardiac_pool, hippocampus_pool  # noqa: E402
from active_learning_figures import area, interval, labels_to, penalty_matrix, study_figures  # noqa: E402
from active_learning_rounds import EVERYTHING, Round, Run, Simulation  # noqa: E402
from training_curves import write_whole  # noqa: E402
from training_data import Study  # noqa: E402

from lib.activelearning.ranking import STRATEGIES  # noqa: E402
from lib.training.loop import TrainResult, train  # noqa: E402
from lib.volume import Volume, save_mask  # noqa: E402


def run_of(strategy: str, seed: int, *dice: float, labels: tuple[int, ...] = (2, 6, 10)) -> Run:
    rounds = tuple(
        Round(count, ["case"], [value, value], 6.0, 60.0) for count, value in zip(labels, dice, strict=True)
    )
    return Run(strategy, seed, STEPS, rounds, 0.1 * seed if strategy == "medsa" else None)


STEPS = 2


def simulation_of(study: PoolStudy, folder: Path, steps: int = STEPS) -> Simulation:
    """With the smallest steps that there are."""
    found = Simulation(study, steps, folder / "out")
    training = found.settings.training.model_copy(update={"batch_slices": 1, "prompts_per_slice": 1})
    found.settings = found.settings.model_copy(update={"training": training})
    return found


def by_name(figures: Any) -> dict[str, Any]:
    return {figure.name: figure for figure in figures}


def test_the_area_is_the_mean_over_the_budget() -> None:
    assert area(run_of("medsa", 0, 0.5, 0.5, 0.5)) == pytest.approx(0.5)
    assert area(run_of("medsa", 0, 0.0, 0.5, 1.0)) == pytest.approx(0.5)
    assert area(run_of("medsa", 0, 0.0, 1.0, 1.0)) == pytest.approx(0.75)
    assert area(run_of("medsa", 0, 0.7, labels=(2,))) == pytest.approx(0.7)


def test_labels_to_a_dice_are_counted_between_rounds_too() -> None:
    run = run_of("medsa", 0, 0.2, 0.6, 0.6)
    assert labels_to(run, 0.1) == 2
    assert labels_to(run, 0.5) == pytest.approx(5)
    assert labels_to(run, 0.9) == 10, "never: the whole budget"


def test_intervals() -> None:
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 2.484, abs=1e-3), pytest.approx(2 + 2.484, abs=1e-3))
    assert interval([1.0]) == (-np.inf, np.inf)


@pytest.fixture
def runs() -> dict[str, list[Run]]:
    noise = (0.0, 0.001, -0.001)
    return {
        "medsa": [run_of("medsa", seed, 0.5 + by, 0.7 + by, 0.8 + by) for seed, by in enumerate(noise)],
        "foreground_random": [
            run_of("foreground_random", seed, 0.4, 0.6 + by, 0.8 - by) for seed, by in enumerate(noise)
        ],
        "random": [run_of("random", seed, 0.3, 0.5 + by, 0.76) for seed, by in enumerate(noise)],
    }


def test_the_figures_of_a_set(runs: dict[str, list[Run]]) -> None:
    full = [run_of(EVERYTHING, 0, 0.8, labels=(100,))]
    found = by_name(study_figures("set", runs, full))
    gain = found["set: area under the curve, medsa above foreground_random"]
    assert (gain.value, gain.holds) == (pytest.approx(0.075), True)
    assert found["set: area under the curve, medsa above foreground_random (aim)"].holds
    saved = found["set: labels to 95% of the whole pool's Dice, medsa against random"]
    assert saved.value == pytest.approx(8.4 / 10, abs=0.01)
    assert saved.holds is False
    assert found["set: share of the pool that is more typical than the first case, worst seed"].value == 0.2
    assert found["set: medsa: scoring"].value == pytest.approx(0.3)


def test_a_strategy_that_loses_for_sure_misses_its_bar(runs: dict[str, list[Run]]) -> None:
    runs["medsa"], runs["foreground_random"] = runs["foreground_random"], runs["medsa"]
    runs["medsa"] = [replace(run, typicality=0.0) for run in runs["medsa"]]
    found = by_name(study_figures("set", runs, []))
    assert found["set: area under the curve, medsa above foreground_random"].holds is False
    assert found["set: labels to 95% of the whole pool's Dice, medsa against random"].holds is None


def test_one_seed_says_nothing_for_sure(runs: dict[str, list[Run]]) -> None:
    one = {name: own[:1] for name, own in runs.items()}
    assert (
        by_name(study_figures("set", one, []))[
            "set: area under the curve, medsa above foreground_random"
        ].holds
        is None
    )
    assert set(penalty_matrix(one)["random"].values()) == {0.0}


def test_the_penalty_matrix(runs: dict[str, list[Run]]) -> None:
    matrix = penalty_matrix(runs)
    assert matrix["random"]["medsa"] == 1.0
    assert matrix["foreground_random"]["medsa"] == pytest.approx(2 / 3, abs=1e-3)
    assert matrix["medsa"]["random"] == 0.0


def test_only_whole_runs_of_seeds_that_all_have_count(tmp_path: Path) -> None:
    study = PoolStudy(_study(tmp_path), ("a",), ("b",), (2, 6, 10), (2, 6, 10))
    simulation = Simulation(study, STEPS, tmp_path)
    for strategy, seed, rounds in (("medsa", 0, 3), ("medsa", 1, 3), ("random", 0, 3), ("random", 1, 2)):
        run = run_of(strategy, seed, 0.1, 0.2, 0.3)
        write_whole(simulation.file(strategy, seed), asdict(replace(run, rounds=run.rounds[:rounds])))
    runs, full = active_learning.whole_runs(simulation, range(3))
    assert {name: [run.seed for run in own] for name, own in runs.items()} == {"medsa": [0], "random": [0]}
    assert full == []


def test_a_simulation_labels_what_the_strategy_chose(tmp_path: Path) -> None:
    study = _made_study(tmp_path)
    run = simulation_of(study, tmp_path).run("medsa", 0)
    assert [one.labels for one in run.rounds] == [2, 4]
    chosen = [case for one in run.rounds for case in one.chosen]
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(study.pool)
    assert all(len(one.dice) == len(study.tested) for one in run.rounds)
    assert 0 <= (run.typicality or 0) <= 0.5


def test_a_simulation_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = _made_study(tmp_path)
    whole_round = Simulation._with_another_round

    def stopped_in_the_second(simulation: Simulation, before: Run, number: int) -> Run:
        if number == 1:
            raise KeyboardInterrupt
        return whole_round(simulation, before, number)

    monkeypatch.setattr(Simulation, "_with_another_round", stopped_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        simulation_of(study, tmp_path).run("entropy", 0)
    kept = simulation_of(study, tmp_path).kept("entropy", 0)
    assert len(kept.rounds) == 1
    monkeypatch.undo()
    run = simulation_of(study, tmp_path).run("entropy", 0)
    assert run.rounds[0] == kept.rounds[0]
    assert len({case for one in run.rounds for case in one.chosen}) == 4


def test_a_training_has_as_many_steps_as_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def counted(*arguments: Any, **more: Any) -> TrainResult:
        result = train(*arguments, **more)
        made.append(result.steps)
        return result

    monkeypatch.setattr(active_learning_rounds, "train", counted)
    simulation = simulation_of(replace(_made_study(tmp_path), tested_counts=(4,)), tmp_path, 3)
    run = simulation.run("random", 0)
    simulation.run(EVERYTHING, 0)
    assert made == [3, 3, 6]
    assert [len(one.dice) for one in run.rounds] == [0, 2], "tested with 4 only"


def test_what_two_strategies_choose_alike_is_learned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = simulation_of(_made_study(tmp_path), tmp_path)
    one = simulation.run("random", 3)
    monkeypatch.setitem(STRATEGIES, "first", STRATEGIES["random"])  # type: ignore[arg-type]
    monkeypatch.setattr(active_learning_rounds, "train", None)
    assert simulation.run("first", 3).rounds == one.rounds


@pytest.mark.parametrize("strategy", ["foreground_random", "diversity"])
def test_what_looks_at_less_is_scored_less_and_chooses_the_same(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _made_study(tmp_path)
    surveyed: list[int] = []
    survey = Simulation._survey

    def counted(*arguments: Any) -> None:
        surveyed.append(len(arguments[-1]))
        survey(*arguments)

    monkeypatch.setattr(Simulation, "_survey", counted)
    less = simulation_of(study, tmp_path / "less").run(strategy, 1)
    scored_less = sum(surveyed)
    monkeypatch.setattr(active_learning_rounds, "DRAWN", ())
    monkeypatch.setattr(active_learning_rounds, "ALIKE", ())
    whole = simulation_of(study, tmp_path / "whole").run(strategy, 1)
    assert [one.chosen for one in less.rounds] == [one.chosen for one in whole.rounds]
    assert scored_less < sum(surveyed) - scored_less


def test_a_run_of_other_steps_is_not_gone_on_with(tmp_path: Path) -> None:
    study = _made_study(tmp_path)
    simulation_of(study, tmp_path, 2).run("first", 0)
    with pytest.raises(SystemExit, match="2 steps a round, not 3"):
        simulation_of(study, tmp_path, 3).run("first", 0)


def test_a_file_that_is_no_run_is_named(tmp_path: Path) -> None:
    simulation = simulation_of(_made_study(tmp_path), tmp_path)
    write_whole(simulation.file("first", 0), {"strategy": "first", "minutes": 0.4, "rounds": []})
    with pytest.raises(
        SystemExit, match=r"-first-0\.json is no run of this benchmark .*minutes.*: move it away"
    ):
        simulation.run("first", 0)


@pytest.mark.parametrize("strategy", [*STRATEGIES, EVERYTHING])
def test_every_strategy_can_be_simulated(strategy: str, tmp_path: Path) -> None:
    study = replace(_made_study(tmp_path), counts=(2,))
    run = simulation_of(study, tmp_path).run(strategy, 1)
    assert [one.labels for one in run.rounds] == [6 if strategy == EVERYTHING else 2]


@pytest.mark.data
def test_nobody_is_both_chosen_from_and_tested(data_dir: Path) -> None:
    volumes, stacks = hippocampus_pool(data_dir), cardiac_pool(data_dir)
    assert (len(volumes.pool), len(volumes.tested), volumes.counts[-1]) == (100, 88, 40)
    assert (len(stacks.pool), len(stacks.tested), stacks.counts[-1]) == (28, 20, 28)
    assert not set(volumes.pool) & set(volumes.tested)
    patients = [{case.rsplit("_", 1)[0] for case in cases} for cases in (stacks.pool, stacks.tested)]
    assert [len(group) for group in patients] == [14, 10]
    assert not patients[0] & patients[1]


def _study(folder: Path, *cases: str) -> Study:
    each = {case: (case,) for case in cases}
    return Study("made", "hippocampus", "hippocampus", folder, cases, cases, each, ())


def _made_study(folder: Path) -> PoolStudy:
    """Six small images to choose from and two to test: a bright ball in noise."""
    rng = np.random.default_rng(0)
    names = [f"case{number}" for number in range(8)]
    for name in names:
        place = np.indices((24, 24, 3)) - rng.uniform([9, 9, 1], [15, 15, 2])[:, None, None, None]
        inside = (place / np.array([5, 5, 2.5])[:, None, None, None]) ** 2
        truth = (inside.sum(axis=0) < 1).astype(np.uint8)
        image = (100 * truth + rng.normal(60, 10, truth.shape)).clip(0, 255).astype(np.uint8)
        volume = Volume(image, np.diag([1, 1, 2, 1.0]))
        for kind, values in (("images", image), ("labels", truth)):
            (folder / kind).mkdir(exist_ok=True)
            save_mask(values, volume, folder / kind / f"{name}.nii.gz")
    return PoolStudy(_study(folder, *names), tuple(names[:6]), tuple(names[6:]), (2, 4), (2, 4))
