"""Records as people are told of them, those of older medsa and damaged ones too."""

import json
from pathlib import Path
from typing import Any

import pytest

from lib.errors import NotFoundError
from lib.training.account import Figures, account_of, explain, overview
from lib.training.releases import Releases

RECORD: dict[str, Any] = {
    "decision": "published",
    "reasons": ["liver: better"],
    "time": "2026-01-01T10:00:00+00:00",
    "champion": 0,
    "kind": "full",
    "trigger": "nightly",
    "start": "base",
    "resumed": True,
    "label_digests": {"a": "aa", "b": "bb", "c": "cc"},
    "trained": ["a", "b"],
    "validated": ["b", "c"],
    "trained_labels": ["liver"],
    "skipped": [{"case_id": "d", "reason": "empty"}],
    "method": "leave one out",
    "scores": {
        "champion": [{"case_id": "b", "label": "liver", "clicks": [0.25, 0.5], "automatic": 0.125}],
        "candidate": [
            {"case_id": "b", "label": "liver", "clicks": [0.5, 0.75], "automatic": 0.25},
            {"case_id": "c", "label": "liver", "clicks": [1.0], "automatic": None},
            {"case_id": "c", "label": "spleen", "clicks": [0.5, 0.5]},
        ],
    },
    "suspicious": [{"case_id": "a", "label": "liver", "dice": 0.1, "typical": 0.9}],
    "notes": ["a note"],
    "events": ["resumed at step 7"],
    "half_way": True,
    "steps": 40,
    "loss": 0.5,
    "seconds": {"training": 20.0},
}


def publish(releases: Releases, record: dict[str, Any]) -> None:
    releases.publish(lambda folder: (folder / "README.md").write_text("card") and None, record)


def test_figures_are_means_over_the_cases_that_have_them() -> None:
    entry = explain(RECORD)
    assert entry.before == (Figures("liver", 1, (0.25, 0.5), 0.125),)
    assert entry.after == (Figures("liver", 2, (0.75, 0.75), 0.25), Figures("spleen", 1, (0.5, 0.5), None))
    assert (entry.dice_before, entry.dice_after) == (0.375, 0.65)
    assert (entry.labels, entry.label_count) == (3, 3)
    assert entry.remarks == ("a note", "d was skipped: empty", "resumed at step 7")
    assert (entry.kind, entry.trigger, entry.start, entry.resumed) == ("full", "nightly", "base", True)
    assert (entry.method, entry.notes, entry.half_way) == ("leave one out", ("a note",), True)


def test_the_labels_of_a_version_are_also_those_that_its_last_run_did_not_look_at() -> None:
    night = {"label_digests": dict.fromkeys(map(str, range(300)), "x"), "trained": ["1"], "validated": ["2"]}
    assert explain(night).label_count == 300
    skipped = [{"case_id": "7", "reason": "empty"}]
    assert explain({**night, "skipped": skipped, "not_replayed": 150}).label_count == 299
    assert explain({**night, "label_digests": None}).label_count == 2, "older records do not say"
    assert explain({"label_digests": {"a": "1"}}).label_count == 0, "it failed before it chose"
    assert explain({**night, "left_out": [["3"], ["4", "5"]]}).left_out == ("3", "4", "5")


@pytest.mark.parametrize("damage", [None, 7, "text", [], {}, [7, None, {}], {"x": None}, float("nan"), True])
def test_nothing_in_a_record_makes_it_fail(damage: Any) -> None:
    for key in RECORD:
        entry = explain({**RECORD, key: damage})
        assert entry.label_count >= 0
        assert all(isinstance(remark, str) for remark in entry.remarks)
    for key in ("case_id", "label", "clicks", "automatic"):
        odd = {**RECORD["scores"]["champion"][0], key: damage}
        explain({"scores": {"champion": [odd], "candidate": damage}})
    entry = explain(dict.fromkeys(RECORD, damage))
    written = json.loads(json.dumps(vars(entry), allow_nan=False, default=vars))
    assert set(written) == set(vars(explain({})))


def test_an_empty_record_says_nothing() -> None:
    entry = explain({})
    assert (entry.decision, entry.version, entry.before, entry.reasons) == ("", None, (), ())
    assert not entry.makes_version


def test_all_about_one_version(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    publish(releases, RECORD)
    account = account_of(releases, 1)
    assert (account.serving, account.weights, account.pruned) == (True, "kept", None)
    assert account.digests == {"a": "aa", "b": "bb", "c": "cc"}
    assert account.run is not None
    assert account.run.suspicious == ({"case_id": "a", "label": "liver", "dice": 0.1, "typical": 0.9},)
    assert account.problem is not None
    assert "adapter_config.json cannot be read" in account.problem
    base = account_of(releases, 0)
    assert (base.serving, base.weights, base.run, base.problem) == (False, "none", None, None)
    with pytest.raises(NotFoundError, match=r"version: 2 .* one of \[0, 1\]"):
        account_of(releases, 2)


def test_a_pruned_version_can_be_told_from_one_that_was_lost(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    for parent in range(4):
        publish(releases, {**RECORD, "champion": parent})
    releases.prune(2, "tonight")
    folder = releases.release(3)
    assert folder is not None
    folder.folder.rename(tmp_path / "elsewhere")
    told = [
        (account_of(releases, version).weights, account_of(releases, version).pruned) for version in (1, 3, 4)
    ]
    assert told == [("pruned", "tonight"), ("missing", None), ("kept", None)]
    assert account_of(releases, 1).run == explain({**RECORD, "version": 1})
    state = overview(releases)
    assert (state["serving"], state["rollback_to"], state["pruned"]) == (4, 0, [1, 2])


def test_an_unreadable_pointer_is_told(tmp_path: Path) -> None:
    releases = Releases(tmp_path)
    publish(releases, RECORD)
    (tmp_path / "champion.json").write_text("{")
    state = overview(releases)
    assert (state["serving"], state["rollback_to"]) == (None, None)
    assert "names no version" in state["problem"]
    assert not account_of(releases, 1).serving
