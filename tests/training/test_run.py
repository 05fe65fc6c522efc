import itertools
import json
import multiprocessing
import random
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from lib.errors import AdapterError, DivergenceError, TrainingError
from lib.files import file_digest
from lib.model.adapter_io import load_adapter
from lib.settings import IntensitySettings, ServingSettings, Settings, TaskSettings, TrainingSettings
from lib.training import choice, circumstances, judging, run, shelf, teaching
from lib.training.cases import CaseFile
from lib.training.gate import decide
from lib.training.learner import Learner
from lib.training.loop import TrainResult
from lib.training.pending import pending_labels
from lib.training.progress_file import read_progress
from lib.training.releases import Releases
from lib.training.request import RunRequest
from lib.training.run import run_training
from lib.training.validation import ObjectScore

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SHA = "0" * 64


def settings(steps=2, labels=None, **training):
    """A budget of `steps` steps on the clock of `go`, one second each.

    Of the cases 0 to 3 by their hashes the first three validate.
    """
    return Settings(
        task=TaskSettings(
            name="test",
            description="",
            labels=labels or {"object": 1},
            intensity=IntensitySettings(),
        ),
        training=TrainingSettings(
            **{
                "train_minutes": steps / 60,
                "batch_slices": 2,
                "prompts_per_slice": 4,
                "learning_rate": 1e-2,
                "validation_fraction": 0.3,
                **training,
            }
        ),
        serving=ServingSettings(),
        bases={},
    )


@pytest.fixture
def files(cases, write_case):
    return [write_case(case) for case in cases]


@pytest.fixture
def go(tmp_path, tiny_model):
    """Runs a training in tmp_path/state; the model starts afresh each time."""

    def build():
        # Seeded: what so few steps reach depends on where they start.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny_model.adapters, tiny_model.trained = tiny_model.sibling().adapters, False
        return tiny_model, SHA

    def start(files, used=None, **arguments):
        return run_training(
            tmp_path / "state",
            files,
            used or settings(),
            build,
            **{"clock": itertools.count(0.0, 1.0).__next__, "now": lambda: NOW, **arguments},
        )

    return start


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "state")


@pytest.fixture
def scripted(monkeypatch):
    """Replaces what validation finds: each time that cases are looked at, the next Dice."""

    def script(*values):
        left = iter(values)
        monkeypatch.setattr(run, "agreements", lambda *arguments: [])
        answer_with(monkeypatch, lambda model: next(left))

    return script


def answer_with(monkeypatch, dice_of):
    """Has every validation of some cases find `dice_of(model)` for all of them."""

    def validate(model, cases, view, between):
        if not cases:
            return []
        dice = dice_of(model)
        return [ObjectScore(case.case_id, "object", (dice,) * 5, dice) for case in cases]

    for module in (run, judging):
        monkeypatch.setattr(module, "validate", validate)


@pytest.mark.parametrize(("most", "expected"), [(None, 2), (1, 1), (64, 2)])
def test_a_training_takes_so_many_cores_at_the_most(go, files, scripted, most, expected):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    scripted(0.5, 0.6)
    try:
        go(files, settings(steps=1, train_threads=most))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_a_whole_run_trains_publishes_and_records(go, many_cases, write_case, releases, tiny_model):
    files = [write_case(case) for case in many_cases]
    record = go(files, settings(steps=40, learning_rate=0.03), code_version="test")
    assert record.decision == "published", record.reasons
    assert (record.champion, record.version, record.steps) == (0, 1, 40)
    release = releases.champion()
    assert release.version == 1
    assert release.config.labels == {"object": 1}
    assert release.config.code_version == "test"
    assert "Dice before" in (release.folder / "README.md").read_text()
    trained = tiny_model.adapter_state()
    tiny_model = tiny_model.sibling()
    load_adapter(release.folder, tiny_model, SHA, {"object": 1})
    assert all(torch.equal(value, trained[key]) for key, value in tiny_model.adapter_state().items())
    (stored,) = releases.records()
    assert stored == json.loads(json.dumps(record.to_json()))
    assert stored["time"] == "2026-01-02T03:04:05+00:00"
    assert stored["label_digests"] == {file.case_id: file_digest(file.label) for file in files}
    assert sorted(stored["trained"] + stored["validated"]) == [file.case_id for file in files]
    assert len(stored["scores"]["candidate"]) == len(stored["validated"])
    assert stored["trained_labels"] == ["object"]


def test_a_worse_candidate_is_refused_and_its_labels_count_as_used(go, files, releases, scripted):
    scripted(0.8, 0.7, 0.75)
    record = go(files)
    assert record.decision == "refused"
    assert record.version is None
    assert "object, 1 click: Dice 0.8000 -> 0.7000" in record.reasons[0]
    assert "half way to it: object, 1 click: Dice 0.8000 -> 0.7500" in record.reasons[4]
    assert releases.champion() is None
    digests = {file.case_id: file_digest(file.label) for file in files}
    assert pending_labels(digests, releases.records()) == []


def test_the_second_run_starts_from_the_published_adapter(go, files, releases, scripted):
    scripted(0.5, 0.6, 0.7)
    go(files)
    record = go(files)
    assert {score.clicks[0] for score in record.scores["champion"]} == {0.6}
    assert (record.champion, record.version) == (1, 2)
    assert releases.champion_version() == 2


def test_half_way_is_published_where_the_whole_way_is_refused(go, files, releases, monkeypatch, tiny_model):
    dice, states = iter((0.5, 0.4, 0.6)), []
    answer_with(monkeypatch, lambda model: states.append(model.adapter_state()) or next(dice))
    record = go(files, settings(steps=3))
    assert (record.decision, record.half_way) == ("published", True)
    load_adapter(releases.champion().folder, tiny_model, SHA, {"object": 1})
    serving, trained, _ = states
    key = "decoder.0.mlp.up.weight"
    assert not torch.equal(trained[key], serving[key])
    assert torch.equal(tiny_model.adapter_state()[key], (trained[key] + serving[key]) / 2)
    assert "mean of the weights" in (releases.champion().folder / "README.md").read_text()


def test_nan_is_refused(go, files, releases, scripted):
    scripted(0.5, float("nan"), float("nan"))
    assert go(files).decision == "refused"
    assert releases.champion() is None


def test_a_label_that_was_learned_and_has_no_case_any_more_refuses(go, files, releases, scripted, tmp_path):
    both = settings(labels={"object": 1, "rare": 2})
    scripted(0.5, 0.6, 0.9, 0.9)
    assert go(files, both).decision == "published"
    records = tmp_path / "state" / "runs.jsonl"
    records.write_text(
        records.read_text().replace('"trained_labels": ["object"]', '"trained_labels": ["object", "rare"]')
    )
    record = go(files, both)
    assert (record.decision, record.steps) == ("refused", 0), "before it costs anything"
    assert record.looked_at == (), "it takes back nothing that was found suspicious"
    assert "no case can judge the label rare" in record.reasons[0]
    assert "roll back to a version that has not learned it" in record.reasons[0]
    assert releases.records()[-1]["decision"] == "refused"
    assert pending_labels(record.label_digests, releases.records()) == [], "again it would end alike"


def test_an_image_that_is_away_costs_that_case_alone_and_its_label_waits(
    go, many_cases, write_case, scripted, releases
):
    scripted(0.5, 0.6, 0.9, 0.9)
    away, *others = [write_case(case) for case in many_cases]
    gone = CaseFile(away.case_id, Path(), away.label, problem="the PACS cannot be reached", away=True)
    record = go([gone, *others])
    assert [(case.case_id, case.reason) for case in record.skipped] == [
        (away.case_id, "the PACS cannot be reached")
    ]
    assert set(record.label_digests) == {file.case_id for file in others}
    scripted(0.5, 0.6, 0.9, 0.9)
    all_there = go([away, *others])
    assert pending_labels(all_there.label_digests, releases.records()) == []
    scripted(0.5, 0.6, 0.9, 0.9)
    again = go([gone, *others])
    assert set(again.label_digests) == set(all_there.label_digests), (
        "it was learned before, and waits for nothing"
    )


def test_of_many_old_cases_a_run_looks_at_some(go, many_cases, write_case, scripted, monkeypatch):
    files = [write_case(case) for case in many_cases]
    scripted(*([0.5, 0.6, 0.6, 0.6] * 2))
    first = go(files, settings(replayed_cases=2))
    assert (first.decision, first.not_replayed) == ("published", 0), "all of them are new"
    new = write_case(many_cases[0], np.roll(many_cases[0].label, 2, axis=0))
    looked_at = []
    load = shelf.load_case
    monkeypatch.setattr(
        shelf, "load_case", lambda file, labels: looked_at.append(file.case_id) or load(file, labels)
    )
    second = go([new, *files[1:]], settings(replayed_cases=2))
    learned = set(first.trained) - {new.case_id}
    assert len(learned & set(looked_at)) == 2
    assert new.case_id in looked_at
    assert second.not_replayed == len(learned) - 2
    assert set(second.label_digests) == {case.case_id for case in many_cases}, "all of them count as seen"


def test_of_the_cases_that_could_judge_a_run_reads_some_and_those_that_did(
    go, many_cases, write_case, scripted, monkeypatch
):
    monkeypatch.setattr(choice, "MAX_CASES", 3)
    monkeypatch.setattr(choice, "MAX_READ", 1)
    files = [write_case(case) for case in many_cases]
    scripted(*([0.5, 0.6, 0.6, 0.6] * 2))
    first = go(files)
    assert (len(first.validated), len(first.held_back)) == (3, 2)
    new = write_case(many_cases[int(first.trained[0].removeprefix("case"))])
    new.label.write_bytes(files[0].label.read_bytes())
    looked_at = []
    load = shelf.load_case
    monkeypatch.setattr(
        shelf, "load_case", lambda file, labels: looked_at.append(file.case_id) or load(file, labels)
    )
    second = go(files)
    assert set(first.validated) <= set(looked_at)
    assert len(set(first.held_back) & set(looked_at)) == 1
    assert second.not_replayed == 1


@pytest.mark.parametrize(
    ("change", "times"),
    [
        (lambda patch, model: None, 1),
        (lambda patch, model: patch.setattr(circumstances, "source_digest", lambda: "another"), 2),
        (lambda patch, model: patch.setattr(shelf, "file_digest", lambda path: "another image"), 2),
        (lambda patch, model: patch.setattr(type(model), "precision", property(lambda one: "bfloat16")), 2),
    ],
    ids=["nothing changed", "other code", "other images", "other precision"],
)
def test_what_serves_is_scored_again_where_it_may_do_otherwise(
    go, files, tiny_model, scripted, monkeypatch, change, times
):
    scripted(0.5, 0.6)
    assert go(files).decision == "published"
    change(monkeypatch, tiny_model)
    asked = []
    answer_with(monkeypatch, lambda model: asked.append(model) or 0.6 + len(asked) / 10)
    go(files)
    assert len(asked) == times, "the candidate, and before it what serves"


def test_after_a_rollback_or_a_refusal_old_labels_are_learned_with_the_next_new_one(
    go, many_cases, write_case, scripted, releases
):
    files = [write_case(case) for case in many_cases[:-1]]
    scripted(0.5, 0.6)
    first = go(files)
    assert (first.decision, len(first.validated)) == ("published", 5)
    releases.rollback(0, NOW.isoformat())
    assert pending_labels(first.label_digests, releases.records()) == [], "it starts nothing by itself"
    scripted(*(0.5,) * 9)
    new = write_case(many_cases[-1])
    second = go([*files, new])
    assert second.decision == "refused"
    assert set(second.trained) >= set(first.trained)
    changed = write_case(many_cases[-1], np.roll(many_cases[-1].label, 2, axis=0))
    scripted(*(0.5,) * 9)
    assert set(go([*files, changed]).trained) == set(second.trained)


def test_labels_that_looked_wrong_and_were_refused_are_not_tried_with_the_next_ones(
    go, many_cases, write_case, scripted, releases
):
    files = [write_case(case) for case in many_cases]
    digests = {file.case_id: file_digest(file.label) for file in files}
    new = digests.pop("case9")
    row = {"case_id": "case7", "label": "object", "dice": 0.1, "typical": 0.8}
    refused = {"decision": "refused", "label_digests": digests, "looked_at": ["case7"], "suspicious": [row]}
    releases.record({**refused, "champion": 0, "start": "champion"})
    scripted(*(0.5,) * 9)
    record = go(files)
    assert pending_labels({**digests, "case9": new}, releases.records()[:1]) == ["case9"]
    assert "case4" in record.trained
    assert "case7" not in record.trained
    scripted(*(0.5,) * 9)
    assert "case7" in go(files, request=RunRequest("full", "person", "champion")).trained
    write_case(many_cases[7], np.roll(many_cases[7].label, 2, axis=0))
    scripted(*(0.5,) * 9)
    assert "case7" in go(files).trained, "it was corrected"


def test_a_run_without_time_for_a_step_leaves_its_labels_in_the_queue(go, files, scripted, releases):
    scripted(0.5)
    with pytest.raises(TrainingError, match="over before the first step"):
        go(files, request=RunRequest(until=NOW - timedelta(minutes=1)))
    record = releases.records()[-1]
    assert (record["decision"], record["steps"], record["trained_minutes"]) == ("failed", 0, 0.0)
    assert len(pending_labels(record["label_digests"], releases.records())) == len(files)


def test_the_record_says_how_much_of_its_time_a_run_trained(go, files, scripted):
    scripted(0.5, 0.6)
    assert go(files).trained_minutes == pytest.approx(2 / 60, abs=1e-3)
    scripted(0.5, 0.6, 0.7, 0.7)
    clock = itertools.count()
    late = go(
        files,
        settings(steps=40),
        request=RunRequest(until=NOW + timedelta(seconds=20)),
        now=lambda: NOW + timedelta(seconds=next(clock) / 4),
    )
    assert 0.0 < late.trained_minutes < 0.9 * 40 / 60


def test_series_of_one_patient_are_never_apart(go, cases, write_case, scripted, releases, monkeypatch):
    """Their ids say nothing of it, as over a PACS; not even when those that were trained on are gone."""
    whose = dict(zip(["case0", "case1", "case2", "case3"], ["p1", "p1", "p2", "p3"], strict=True))
    files = [replace(write_case(case), patient=whose[case.case_id]) for case in cases]
    groups = []
    monkeypatch.setattr(judging, "decide", lambda *given: groups.append(given[-1].group_of) or decide(*given))
    scripted(0.5, *(0.6,) * 9)
    record = go(files, settings(validation_fraction=1e-9))
    assert record.decision == "published"
    assert ("case0", "case1") in {tuple(sorted(fold)) for fold in record.left_out}
    assert record.patients == whose
    assert {groups[0](case) for case in whose} == {"p1", "p2", "p3"}
    others = [
        replace(file, case_id=f"new{number}", patient=f"p{number + 8}")
        for number, file in enumerate(files[1:])
    ]
    again = replace(files[0], case_id="again")
    scripted(0.5, *(0.7,) * 9)
    later = go([again, *others], settings(validation_fraction=1e-9))
    assert {*itertools.chain(*later.left_out), *later.validated} == {"new0", "new1", "new2"}


def test_a_stop_is_heard_while_cases_are_read(go, files, releases):
    asked = iter([False, True])
    record = go(files, should_stop=lambda: next(asked, True))
    assert (record.decision, record.steps) == ("stopped", 0)


def test_with_few_labels_cases_are_left_out_by_models_trained_without_them(
    go, cases, write_case, releases, monkeypatch
):
    trained_on, judged = [], []
    train = teaching.train

    def watched(model, prepared, *arguments, **named):
        trained_on.append([case.case_id for case in prepared])
        return train(model, prepared, *arguments, **named)

    def validate(model, found, view, between):
        judged.append(([case.case_id for case in found], model.adapter_state()["labels.weight"]))
        dice = 0.5 if len(judged) == 1 else 0.6
        return [ObjectScore(case.case_id, "object", (dice,) * 5, dice) for case in found]

    monkeypatch.setattr(teaching, "train", watched)
    for module in (run, judging):
        monkeypatch.setattr(module, "validate", validate)
    record = go([write_case(case) for case in cases], settings(steps=8, validation_fraction=0.2))
    assert (record.decision, record.method) == ("published", "leave one out")
    assert record.validated == ("case2",)
    assert sorted(record.left_out) == [("case0",), ("case1",), ("case3",)]
    whole, *without = trained_on
    assert sorted(whole) == ["case0", "case1", "case3"]
    assert sorted(map(sorted, without)) == [["case0", "case1"], ["case0", "case3"], ["case1", "case3"]]
    champion, held, *folds = judged
    assert sorted(champion[0]) == ["case0", "case1", "case2", "case3"]
    assert held[0] == ["case2"]
    for (found, weights), others in zip(folds, without, strict=True):
        assert found == sorted({"case0", "case1", "case3"} - set(others))
        assert not torch.equal(weights, held[1])
    published = adapted_weights(releases)
    assert torch.equal(published["labels.weight"], held[1]), "what is published was trained on all"
    card = (releases.champion().folder / "README.md").read_text()
    assert "3 cases by models trained without them (leave one out) and 1 never trained on" in " ".join(
        card.split()
    )


def adapted_weights(releases):
    return load_file(releases.champion().folder / "adapter_model.safetensors")


def test_with_nothing_left_to_compare_by_the_run_says_what_to_do(go, cases, write_case, scripted):
    few = [write_case(case) for case in cases if case.case_id != "case2"]
    scripted(0.5, *(0.6,) * 9)
    assert go(few, settings(validation_fraction=0.2)).decision == "published"
    with pytest.raises(TrainingError, match=r"0 of at least 3 patients .* label 3 more"):
        go(few, settings(validation_fraction=0.2))


def test_a_label_that_is_of_somewhere_else_is_named(go, many_cases, write_case, tiny_model):
    """One of the training cases has its label in a corner."""
    wrong = np.zeros_like(many_cases[6].label)
    wrong[:4, :4, :4] = 1
    files = [write_case(case, wrong if case.case_id == "case6" else None) for case in many_cases]
    record = go(files, settings(steps=60, learning_rate=0.03), request=RunRequest("full", "command line"))
    assert [one.case_id for one in record.suspicious] == ["case6"]
    assert "case6" in record.trained
    assert {*record.trained, *record.validated} <= set(record.looked_at)
    assert record.suspicious[0].dice < 0.1 < record.suspicious[0].typical


def test_an_incremental_run_draws_new_cases_more_often(go, files, scripted, monkeypatch, releases):
    seen = []
    monkeypatch.setattr(
        teaching, "train", lambda *args, **named: seen.append(args[2]) or TrainResult(1, 1.0, (0.5,), False)
    )
    scripted(0.5, 0.6)
    go(files)
    assert seen[0].new == {"case0", "case1", "case2", "case3"}
    files[3].label.write_bytes(files[2].label.read_bytes())
    scripted(0.7)
    go(files)
    assert seen[1].new == {"case3"}
    scripted(0.8)
    go(files, request=RunRequest("full", "nightly"))
    assert seen[2].new == frozenset()


def test_a_full_run_from_the_base_starts_afresh(go, files, scripted, releases, monkeypatch):
    starts = []
    train = teaching.train
    monkeypatch.setattr(
        teaching,
        "train",
        lambda model, *args, **named: starts.append(model.trained) or train(model, *args, **named),
    )
    scripted(0.5, 0.6)
    go(files)
    scripted(0.7)
    record = go(files, request=RunRequest("full", "nightly", "base"))
    assert starts == [False, False]
    assert (record.decision, record.champion, record.version) == ("published", 1, 2)
    assert "on top of version 0" in (releases.champion().folder / "README.md").read_text()


def test_a_refused_run_from_the_base_has_no_half_way(go, files, scripted):
    scripted(0.5, 0.6)
    go(files)
    scripted(0.4)
    record = go(files, request=RunRequest("full", "nightly", "base"))
    assert record.decision == "refused"
    assert not any("half way" in reason for reason in record.reasons)


def test_minutes_that_are_asked_for_count(go, files, scripted):
    scripted(0.5, 0.6)
    assert go(files, settings(steps=2), request=RunRequest(minutes=5 / 60)).steps == 5


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(2)` is a wish to stop that comes when two steps more are done."""

    def ask(count):
        done, step = [], Learner.step

        def counted(self, *arguments):
            done.append(step(self, *arguments))
            return done[-1]

        monkeypatch.setattr(Learner, "step", counted)
        return lambda: len(done) >= count

    return ask


def test_a_stopped_run_goes_on_the_next_time(go, files, scripted, tmp_path, stop_after):
    scripted(0.5)
    stopped = go(files, settings(steps=6), should_stop=stop_after(2))
    assert (stopped.decision, stopped.steps) == ("stopped", 2)
    checkpoint = tmp_path / "state" / "checkpoints" / "incremental.pt"
    assert checkpoint.exists()
    scripted(0.5, 0.6)
    record = go(files, settings(steps=6))
    assert (record.decision, record.steps) == ("published", 6)
    assert record.resumed == stopped.steps
    assert record.trained_minutes == pytest.approx(6 / 60, abs=1e-3), "with those before it was stopped"
    assert not checkpoint.exists()


@pytest.mark.parametrize(
    ("stage", "fraction"),
    [
        ("evaluating the serving", 0.3),
        ("leave-one-out", 1e-9),
        ("evaluating the candidate", 0.3),
        ("looking for labels", 0.3),
    ],
)
def test_a_stop_is_heard_in_every_stage(go, files, tmp_path, stage, fraction):
    heard = []

    def should_stop():
        heard.append(read_progress(tmp_path / "state")["status"].startswith(stage))
        return heard[-1]

    record = go(files, settings(validation_fraction=fraction), should_stop=should_stop)
    assert (record.decision, sum(heard)) == ("stopped", 1)
    checkpoint = tmp_path / "state" / "checkpoints" / "incremental.pt"
    assert checkpoint.exists() == (stage != "evaluating the serving")


def test_a_kind_of_its_own_has_a_checkpoint_of_its_own(go, files, scripted, tmp_path, stop_after):
    scripted(0.5)
    night = RunRequest("full", "nightly", "base")
    go(files, settings(steps=6), request=night, should_stop=stop_after(2))
    scripted(0.5)
    person = replace(night, start="champion")
    go(files, settings(steps=6), request=person, should_stop=stop_after(2))
    checkpoints = tmp_path / "state" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["full-champion.pt", "full.pt"]
    scripted(0.5, 0.6)
    assert go(files, settings(steps=6)).resumed == 0
    assert (checkpoints / "full.pt").exists()


def test_a_night_from_the_base_goes_on_whatever_was_published_in_between(
    go, files, scripted, releases, stop_after
):
    scripted(0.5)
    night = RunRequest("full", "nightly", "base")
    stopped = go(files, settings(steps=6), request=night, should_stop=stop_after(2))
    assert (stopped.decision, stopped.steps) == ("stopped", 2)
    scripted(0.5, 0.6)
    assert go(files, settings(steps=2)).decision == "published"
    scripted(0.7)
    assert go(files, settings(steps=6), request=night).resumed == stopped.steps


def test_a_run_that_is_to_be_over_trains_no_longer_than_that_leaves_time_for(go, files, scripted):
    """A minute a look: of 20 minutes 17 are for training, however slow it is."""
    scripted(0.5, 0.6)
    moments = (NOW + timedelta(minutes=number) for number in itertools.count())
    until = NOW + timedelta(minutes=20)
    record = go(
        files,
        settings(steps=500),
        request=RunRequest("full", "nightly", "base", until=until),
        now=lambda: next(moments),
    )
    assert record.decision == "published"
    assert 5 < record.steps < 17


def test_nobody_is_judged_by_a_model_that_was_trained_on_him(go, cases, unseen, write_case, monkeypatch):
    """Of four patients one has a case too many for the bound on the cases that are left out."""
    monkeypatch.setattr(choice, "MAX_CASES", 4)
    renamed = [
        replace(case, case_id=f"p{number // 2}_{number}") for number, case in enumerate([*cases, *unseen])
    ]
    files = [write_case(case) for case in renamed]
    used = settings(steps=2, validation_fraction=1e-9)
    used = used.model_copy(update={"task": used.task.model_copy(update={"patient": "^(p[0-9]+)_"})})
    trained, train_fold = [], teaching.Teacher.train_fold

    def spied(self, model, start, prepared, *rest):
        trained.append({case.case_id for case in prepared})
        return train_fold(self, model, start, prepared, *rest)

    monkeypatch.setattr(teaching.Teacher, "train_fold", spied)
    record = go(files, used)
    assert len(record.left_out) == 3
    for fold, kept in zip(record.left_out, trained, strict=True):
        assert kept
        assert not {case[:2] for case in fold} & {case[:2] for case in kept}


def test_a_label_that_came_since_is_not_passed_over_by_an_old_checkpoint(
    go, files, cases, write_case, scripted, stop_after
):
    scripted(0.5)
    stopped = go(files, settings(steps=6), should_stop=stop_after(2))
    assert stopped.decision == "stopped"
    changed = [*files[:-1], write_case(cases[-1], np.roll(cases[-1].label, 1, axis=0))]
    scripted(0.5, 0.6)
    record = go(changed, settings(steps=6))
    assert (record.resumed, record.steps) == (0, 6)


def test_a_training_that_diverged_is_not_gone_on_with(go, files, scripted, tmp_path, monkeypatch, stop_after):
    scripted(0.5)
    go(files, settings(steps=6), should_stop=stop_after(2))
    checkpoint = tmp_path / "state" / "checkpoints" / "incremental.pt"
    assert checkpoint.exists()

    def diverge(*arguments):
        raise DivergenceError("the loss became nan at step 3; nothing is published")

    monkeypatch.setattr(Learner, "step", diverge)
    scripted(0.5)
    with pytest.raises(TrainingError, match="became nan"):
        go(files, settings(steps=6))
    assert not checkpoint.exists()


def test_what_killed_writers_left_is_removed(go, files, scripted, tmp_path):
    state = tmp_path / "state"
    (state / "releases").mkdir(parents=True)
    left = [
        state / ".progress.json.abc.part",
        state / ".champion.json.abc.part",
        state / "releases" / ".v0001.json.abc.part",
        state / "releases" / "v0007.json",
    ]
    for path in left:
        path.write_text("{}")
    scripted(0.5, 0.6)
    assert go(files).version == 1
    assert not any(path.exists() for path in left)
    assert (state / "releases" / "v0001.json").exists()


def test_where_cases_are_left_out_a_full_run_has_its_minutes_for_all_that_it_trains(
    go, cases, write_case, scripted
):
    files = [write_case(case) for case in cases]
    scripted(*[0.5, *[0.6] * 4])
    request = RunRequest("full", "nightly", "base", minutes=12 / 60)
    record = go(files, settings(validation_fraction=0.2), request=request)
    assert (record.method, record.steps) == ("leave one out", 6)


def test_one_that_goes_on_from_what_serves_shares_its_time_with_the_folds_and_moves_less(
    go, many_cases, unseen, write_case, scripted, monkeypatch
):
    """The first one takes twice its time, from nothing."""
    seen, plain = [], teaching.train

    def spied(model, prepared, options, **named):
        seen.append((options.seconds, options.learning_rate))
        return plain(model, prepared, options, **named)

    monkeypatch.setattr(teaching, "train", spied)
    used = settings(steps=4, validation_fraction=1e-9, learning_rate=0.01, refining_share=0.5)
    scripted(*[0.5, *[0.6] * 4])
    first = go([write_case(case) for case in many_cases], used)
    assert (first.decision, first.method) == ("published", "leave one out")
    assert seen == [(4.0, 0.01), (2.0, 0.01), (2.0, 0.01)]
    seen.clear()
    scripted(*[0.6, *[0.7] * 4])
    renamed = [
        replace(case, case_id=f"new{number}") for number, case in enumerate([*unseen, *many_cases[:3]])
    ]
    second = go([write_case(case) for case in [*many_cases, *renamed]], used)
    assert (second.champion, second.method) == (1, "leave one out")
    assert seen == [(2.0, 0.005), (1.0, 0.005), (1.0, 0.005)]
    seen.clear()
    scripted(*[0.7, *[0.8] * 4])
    fresh = [replace(case, case_id=f"more{number}") for number, case in enumerate(many_cases[:3])]
    go([write_case(case) for case in fresh], used, request=RunRequest("full", "person", "base"))
    assert seen[0] == (2.0, 0.01), "from the base"


def test_a_version_changed_during_the_run_fails_and_leaves_the_labels_pending(
    go, files, releases, scripted, tmp_path
):
    scripted(0.5, 0.6)

    def stop():
        if (
            read_progress(tmp_path / "state")["status"].startswith("training")
            and not releases.champion_version()
        ):
            releases.publish(lambda folder: (folder / "x").write_text(""), {"decision": "published"})
        return False

    with pytest.raises(TrainingError, match="the serving version was changed during the run"):
        go(files, settings(steps=1), should_stop=stop)
    last = releases.records()[-1]
    assert (last["decision"], releases.champion_version() > 0) == ("failed", True)
    assert pending_labels(last["label_digests"], releases.records()) == list(last["label_digests"])


def test_a_stopped_run_publishes_nothing_and_leaves_its_labels_pending(go, files, releases):
    record = go(files, should_stop=lambda: True)
    assert record.decision == "stopped"
    assert releases.champion() is None
    assert releases.records()[-1]["decision"] == "stopped"
    assert pending_labels({"case0": "x"}, releases.records()) == ["case0"]


def wrong_affine(write_case, case):
    return write_case(case, affine=np.diag([1.0, 1.0, 2.5, 1.0]))


def wrong_value(write_case, case):
    return write_case(case, 9 * case.label)


def wrong_shape(write_case, case):
    return write_case(case, case.label[:-1])


def empty(write_case, case):
    return write_case(case, 0 * case.label)


def unreadable_image(write_case, case):
    file = write_case(case)
    file.image.write_bytes(b"no image")
    return file


def unreadable_label(write_case, case):
    file = write_case(case)
    file.label.write_bytes(file.label.read_bytes()[:40])
    return file


def missing_image(write_case, case):
    file = write_case(case)
    file.image.unlink()
    return file


def missing_label(write_case, case):
    file = write_case(case)
    file.label.unlink()
    return file


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (wrong_affine, "affine differs"),
        (wrong_value, "value 9 is not in the label set"),
        (wrong_shape, r"shape \(23, 20, 12\) differs"),
        (empty, "empty"),
        (unreadable_image, "cannot be read"),
        (unreadable_label, "cannot be read"),
        (missing_image, "no such file"),
        (missing_label, "no such file"),
    ],
)
def test_a_bad_case_is_skipped_by_name_and_training_goes_on(
    go, many_cases, write_case, scripted, spoil, reason
):
    scripted(0.5, 0.6)
    good = [write_case(many_cases[place]) for place in (0, 1, 2, 4)]
    files = [*good, spoil(write_case, many_cases[3])]
    record = go(files)
    assert record.decision == "published"
    (skipped,) = record.skipped
    assert skipped.case_id == "case3"
    assert re.search(reason, skipped.reason)
    assert "case3" not in record.trained + record.validated
    # It was looked at: the same bad label does not queue the next training.
    assert ("case3" in record.label_digests) == (spoil is not missing_label)


def test_without_labels_training_says_so(go, releases):
    with pytest.raises(TrainingError, match="no labels"):
        go([])
    assert releases.records()[-1]["decision"] == "failed"


def test_with_too_few_usable_cases_training_says_how_many_and_why(go, cases, write_case, releases):
    files = [write_case(cases[0]), wrong_value(write_case, cases[1])]
    with pytest.raises(TrainingError, match=r"at least 3 .* found 1; case1 was skipped: .* value 9"):
        go(files)
    assert pending_labels({"case0": "x"}, releases.records()) == ["case0"]


def test_a_second_run_at_the_same_time_names_the_holder(go, files, tmp_path, scripted):
    scripted(0.5, 0.6)
    go(files)
    holder = read_progress(tmp_path / "state")["pid"]
    lock = FileLock(tmp_path / "state" / "training.lock")
    with lock, pytest.raises(TrainingError, match=rf"under way already \(process {holder}\)"):
        go(files)
    scripted(0.6, 0.7)
    assert go(files).decision == "published"


def broken_train(*args, **kwargs):
    raise RuntimeError("out of memory")


def test_a_failed_run_is_recorded_and_the_next_one_works(
    go, files, releases, scripted, tmp_path, monkeypatch
):
    scripted(0.5)
    monkeypatch.setattr(teaching, "train", broken_train)
    with pytest.raises(RuntimeError, match="out of memory"):
        go(files)
    monkeypatch.undo()
    assert releases.champion() is None
    assert releases.records()[-1]["decision"] == "failed"
    assert read_progress(tmp_path / "state")["running"] is False
    scripted(0.5, 0.6)
    assert go(files).decision == "published"


def test_an_adapter_of_other_labels_fails_and_says_so(go, files, cases, write_case, scripted):
    scripted(0.5, 0.6)
    go(files)
    with pytest.raises(AdapterError, match="made for labels"):
        go(files, settings(labels={"object": 1, "other": 2}))


def test_progress_is_what_viewers_read(go, files, scripted, tmp_path, monkeypatch):
    scripted(0.5, 0.6)
    seen = []
    monkeypatch.setattr(run.ProgressFile, "write", record_writes(run.ProgressFile.write, seen, tmp_path))
    go(files, settings(steps=3))
    assert [(found["epoch"], found["total_epochs"]) for found in seen[:5]] == [
        (0, 100),
        (0, 100),
        (0, 100),
        (33, 100),
        (67, 100),
    ]
    last = seen[-1]
    assert (last["epoch"], last["best_metric"], last["version"], last["running"]) == (100, 0.6, 1, False)
    assert last["total_time"] == "0:00:00"
    assert last["status"].startswith("published; object: Dice")
    assert seen[2]["best_metric"] == 0.5
    assert seen[0]["best_metric"] is None


def record_writes(write, seen, tmp_path):
    def wrapped(self, *args, **kwargs):
        write(self, *args, **kwargs)
        seen.append(read_progress(tmp_path / "state"))

    return wrapped


def test_stray_folders_of_a_killed_run_are_removed_even_when_nothing_is_published(
    go, files, scripted, tmp_path
):
    stray = tmp_path / "state" / "releases" / ".tmp-dead"
    stray.mkdir(parents=True)
    (stray / "half").write_text("x")
    scripted(0.6, 0.5, 0.5)
    go(files)
    assert not stray.exists()


def run_endlessly(go, files, state, ready):
    torch.set_num_threads(1)
    ready.set()
    while True:
        go(files, settings(steps=1))


def test_a_kill_at_any_moment_leaves_a_serving_version_and_the_next_run_works(
    go, files, releases, tiny_model, tmp_path, monkeypatch
):
    # It goes up in all processes alike, and from run to run.
    answer_with(monkeypatch, lambda model: time.monotonic() / 1e9 % 1)
    # Forked: a new interpreter would spend seconds on imports.
    context = multiprocessing.get_context("fork")
    waits = random.Random(1)
    for _ in range(3):
        ready = context.Event()
        process = context.Process(target=run_endlessly, args=(go, files, tmp_path / "state", ready))
        process.start()
        assert ready.wait(60)
        time.sleep(waits.uniform(0.2, 1.5))
        process.kill()
        process.join()
        champion = releases.champion()
        if champion is not None:
            load_adapter(champion.folder, tiny_model, SHA, {"object": 1})
    before = releases.champion_version()
    record = go(files)
    assert (record.decision, record.champion) == ("published", before)
    assert releases.champion_version() == record.version
    assert list((tmp_path / "state" / "releases").glob(".tmp-*")) == []
