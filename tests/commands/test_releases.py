"""`cli.py releases`: what it shows, writes and changes."""

import json
from pathlib import Path
from typing import Any

import pytest

import cli
from lib.training.releases import Releases


def scored(dice: float) -> list[dict[str, Any]]:
    return [{"case_id": "v", "label": "liver", "clicks": [dice, dice + 0.125], "automatic": dice / 2}]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four versions, of which the first has a record as older medsa wrote it."""
    monkeypatch.setenv("COLUMNS", "200")
    releases = Releases(tmp_path / "state")
    for number in range(1, 5):
        record: dict[str, Any] = {"decision": "published", "time": f"day {number}", "trained": ["[bold]a"]}
        if number > 1:
            record |= {
                "champion": number - 1,
                "kind": "full",
                "trigger": "nightly",
                "start": "base",
                "validated": ["v"],
                "reasons": [f"reason {number}"],
                "notes": ["a note"],
                "suspicious": [{"case_id": "odd", "label": "liver", "dice": 0.1, "typical": 0.9}],
                "label_digests": {"[bold]a": "0123456789abcdef"},
                "scores": {"champion": scored(0.25), "candidate": scored(0.5)},
                "seconds": {"training": 20.5},
            }
        releases.publish(lambda folder: (folder / "README.md").write_text("card") and None, record)
    return tmp_path / "state"


def test_the_list_says_what_serves_and_what_is_gone(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "prune", "--keep", "2", "--state", str(state)]) == 0
    assert capsys.readouterr().out == "weights removed of versions 1, 2; kept: 3, 4\n"
    assert cli.main(["releases", "--state", str(state)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert [row[2] for row in rows] == ["1 pruned", "2 pruned", "3", "4 serves", "1, 2"]
    assert rows[3] == [
        "day 4",
        "published",
        "4 serves",
        "full, nightly",
        "1 + 1",
        "0.312",
        "0.562",
        "reason 4; a note",
    ]


@pytest.mark.parametrize(
    "order", [["--state", "STATE", "list"], ["list", "--state", "STATE"], ["--state", "STATE"]]
)
def test_options_may_stand_on_either_side(state: Path, tmp_path: Path, order: list[str]) -> None:
    out = tmp_path / "list.json"
    arguments = [str(state) if part == "STATE" else part for part in order]
    assert cli.main(["releases", "--json", str(out), *arguments]) == 0
    found = json.loads(out.read_text())
    assert (found["serving"], found["rollback_to"], found["versions"]) == (4, 3, [0, 1, 2, 3, 4])
    assert len(found["records"]) == 4


def test_show_tells_all(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "show.json"
    assert cli.main(["releases", "show", "3", "--state", str(state), "--json", str(out)]) == 0
    text = capsys.readouterr().out
    for part in (
        "day 3",
        "full, nightly",
        "the base",
        "reason 3",
        "1: [bold]a",
        "1: v",
        "case_id odd, label liver, dice 0.1, typical 0.9",
        "a note",
        "training 20.5",
        "sha256 0123456789ab",
        "adapter_config.json cannot be read",
        "0.125 -> 0.250",
        "0.375 -> 0.625",
    ):
        assert part in text
    found = json.loads(out.read_text())
    assert (found["version"], found["serving"], found["run"]["parent"]) == (3, False, 2)


def test_show_takes_old_records_the_base_and_pruned_versions(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Releases(state).prune(2, "tonight")
    for version, told in (("0", "the base without adapter"), ("1", "its weights were pruned on tonight")):
        assert cli.main(["releases", "show", version, "--state", str(state)]) == 0
        assert told in capsys.readouterr().out
    assert cli.main(["releases", "show", "9", "--state", str(state)]) == 2
    assert "version: 9 is not accepted; allowed: one of [0, 1, 2, 3, 4]" in capsys.readouterr().err


def test_what_was_pruned_cannot_serve_again(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["releases", "prune", "--keep", "0", "--state", str(state)]) == 2
    assert "keep: 0 is not accepted; allowed: a number of versions, at least 1" in capsys.readouterr().err
    assert cli.main(["releases", "prune", "--keep", "9", "--state", str(state)]) == 0
    assert capsys.readouterr().out == "nothing to remove; kept: 1, 2, 3, 4\n"
    assert cli.main(["releases", "prune", "--keep", "1", "--state", str(state)]) == 0
    assert cli.main(["releases", "rollback", "1", "--state", str(state)]) == 2
    assert "the weights of version 1 were pruned on" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["releases", "prune", "--state", str(state)])


def test_settings_before_the_action_hold_for_it(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--conf", "state", str(state), "--conf", "speed", "11"]
    assert cli.main(["releases", *options[:3], "show", "4"]) == 0
    assert "reason 4" in capsys.readouterr().out
    assert cli.main(["releases", *options, "rollback"]) == 2
    assert "speed" in capsys.readouterr().err
