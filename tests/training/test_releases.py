import json
import multiprocessing
import random
import time

import pytest

from lib.errors import AdapterError, InputError, NotFoundError
from lib.training.releases import Releases


def writer(text):
    def write(folder):
        (folder / "adapter_model.safetensors").write_text(text)

    return write


def content(release):
    return (release.folder / "adapter_model.safetensors").read_text()


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "state")


def test_without_any_release_the_base_serves(releases):
    assert releases.champion() is None
    assert releases.champion_version() == 0
    assert releases.versions() == [0]
    assert releases.records() == []


def test_a_published_version_serves_and_is_recorded(releases):
    release = releases.publish(writer("one"), {"decision": "published"})
    assert (release.version, release.folder.name) == (1, "v0001")
    assert releases.champion() == release
    assert content(release) == "one"
    assert releases.records() == [{"decision": "published", "version": 1}]


def test_versions_count_up_also_after_a_rollback(releases):
    releases.publish(writer("one"), {})
    releases.publish(writer("two"), {})
    releases.rollback(1, "today")
    third = releases.publish(writer("three"), {})
    assert third.version == 3
    assert releases.versions() == [0, 1, 2, 3]
    assert content(releases.champion()) == "three"


def test_a_record_changes_nothing_that_serves(releases):
    first = releases.publish(writer("one"), {"decision": "published"})
    releases.record({"decision": "refused", "reasons": ["liver: worse"]})
    assert releases.champion() == first
    assert [record["decision"] for record in releases.records()] == ["published", "refused"]


def test_rollback_moves_the_pointer_back_and_records_it(releases):
    first = releases.publish(writer("one"), {})
    releases.publish(writer("two"), {})
    assert releases.rollback(1, "2026-01-01") == first
    assert releases.champion() == first
    assert releases.records()[-1] == {
        "decision": "rolled back",
        "time": "2026-01-01",
        "champion": 2,
        "version": 1,
    }


def test_rollback_to_the_base(releases):
    releases.publish(writer("one"), {})
    assert releases.rollback(0, "today") is None
    assert releases.champion() is None


def test_rollback_to_an_unknown_version_names_those_there_are(releases):
    releases.publish(writer("one"), {})
    with pytest.raises(NotFoundError, match=r"version: 7 .* one of \[0, 1\]"):
        releases.rollback(7, "today")
    assert releases.champion_version() == 1


def test_a_write_that_fails_publishes_nothing_and_its_leftover_goes_with_the_next(releases, tmp_path):
    def broken(folder):
        (folder / "half").write_text("x")
        raise OSError("disk full")

    releases.publish(writer("one"), {})
    with pytest.raises(OSError, match="disk full"):
        releases.publish(broken, {})
    assert releases.champion_version() == 1
    assert len(list((tmp_path / "state" / "releases").glob(".tmp-*"))) == 1
    releases.publish(writer("two"), {})
    assert list((tmp_path / "state" / "releases").glob(".tmp-*")) == []
    assert releases.versions() == [0, 1, 2]


def test_a_cut_off_record_is_left_out_and_does_not_spoil_the_next(releases, tmp_path):
    releases.record({"number": 1})
    path = tmp_path / "state" / "runs.jsonl"
    with path.open("a") as stream:
        stream.write('{"number": 2, "lab')
    assert releases.records() == [{"number": 1}]
    releases.record({"number": 3})
    assert releases.records() == [{"number": 1}, {"number": 3}]


def test_records_keep_their_lines_whatever_the_text(releases):
    text = "a\nb\u2028c \N{LATIN SMALL LETTER E WITH ACUTE}"
    releases.record({"reason": text})
    assert releases.records() == [{"reason": text}]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": null}', '{"other": 1}', '{"version": "x"}'])
def test_a_damaged_pointer_is_an_error_that_a_rollback_mends(releases, tmp_path, text):
    releases.publish(writer("one"), {})
    (tmp_path / "state" / "champion.json").write_text(text)
    with pytest.raises(AdapterError, match=r"champion\.json names no version"):
        releases.champion()
    releases.rollback(1, "today")
    assert content(releases.champion()) == "one"


def test_a_champion_without_its_folder_is_an_error(releases, tmp_path):
    release = releases.publish(writer("one"), {})
    release.folder.rename(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match="serving version 1 has no folder"):
        releases.champion()


@pytest.fixture
def without_its_last_line(releases, tmp_path):
    """Two versions and a refusal between; the record of the second never reached runs.jsonl."""
    releases.publish(writer("one"), {"decision": "published", "trained": ["a"]})
    releases.record({"decision": "refused"})
    releases.publish(writer("two"), {"decision": "published", "trained": ["b"]})
    path = tmp_path / "state" / "runs.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    return path


def test_a_serving_version_has_its_record_though_a_kill_kept_it_from_the_file(
    releases, without_its_last_line
):
    second = {"decision": "published", "trained": ["b"], "version": 2}
    assert [record["decision"] for record in releases.records()] == ["published", "refused", "published"]
    assert releases.records()[-1] == second
    releases.record({"decision": "failed"})
    assert releases.records()[2:] == [second, {"decision": "failed"}]
    assert len(without_its_last_line.read_text().splitlines()) == 4


def test_a_kept_record_is_appended_before_the_pointer_moves_on(releases, without_its_last_line):
    releases.rollback(1, "today")
    assert [record.get("version") for record in releases.records()] == [1, None, 2, 1]
    releases.rollback(2, "tomorrow")
    assert [record.get("version") for record in releases.records()] == [1, None, 2, 1, 2]


def test_the_adapter_folder_does_not_hold_the_record_with_its_case_ids(releases):
    release = releases.publish(writer("one"), {"trained": ["a"]})
    assert [path.name for path in release.folder.iterdir()] == ["adapter_model.safetensors"]


def publish_endlessly(state, ready):
    def write(folder):
        for index in range(4):
            (folder / f"part{index}").write_text("x" * 50_000)
        (folder / "complete").write_text("yes")

    releases = Releases(state)
    ready.set()
    while True:
        releases.publish(write, {"decision": "published", "padding": "y" * 5_000})


def test_a_kill_at_any_moment_of_publishing_leaves_a_loadable_champion(tmp_path):
    state = tmp_path / "state"
    # Forked: a new interpreter would spend seconds on imports for milliseconds of publishing.
    context = multiprocessing.get_context("fork")
    waits = random.Random(0)
    for _ in range(12):
        ready = context.Event()
        process = context.Process(target=publish_endlessly, args=(state, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(waits.uniform(0.0, 0.05))
        process.kill()
        process.join()
        releases = Releases(state)
        for version in releases.versions()[1:]:
            assert (state / "releases" / f"v{version:04d}" / "complete").is_file()
        champion = releases.champion()
        assert champion is None or (champion.folder / "complete").is_file()
        recorded = [record["version"] for record in releases.records()]
        assert recorded.count(releases.champion_version()) == (champion is not None)
        assert len(recorded) == len(set(recorded))
    release = releases.publish(writer("next"), {"decision": "published"})
    assert releases.champion() == release
    assert releases.records()[-1]["version"] == release.version
    assert list((state / "releases").glob(".*")) == []


def publish(releases, *parents):
    """One version after the other, each while that of `parents` serves."""
    for number in range(1, 1 + len(parents)):
        if parents[number - 1] != releases.champion_version():
            releases.rollback(parents[number - 1], "then")
        releases.publish(writer(str(number)), {"decision": "published", "champion": parents[number - 1]})


def test_a_rollback_without_a_version_goes_back_step_by_step(releases):
    publish(releases, 0, 1, 2)
    for expected in (2, 1, 0):
        assert releases.rollback_target() == expected
        releases.rollback(None, "today")
        assert releases.champion_version() == expected
    with pytest.raises(NotFoundError, match=r"version: None .* one of \[0, 1, 2, 3\]; the base serves"):
        releases.rollback(None, "today")


def test_a_rollback_without_a_version_goes_where_the_champion_came_from(releases):
    publish(releases, 0, 1, 1)
    assert releases.rollback(None, "today", "ann").version == 1
    assert releases.records()[-1]["by"] == "ann"


def test_pruning_keeps_the_newest_the_champion_and_the_one_before_it(releases, tmp_path):
    publish(releases, 0, 1, 2, 2, 4)
    releases.rollback(4, "today")
    assert releases.prune(1, "tonight", "ann") == [1, 3]
    assert releases.versions() == [0, 2, 4, 5]
    assert releases.records()[-1] == {
        "decision": "pruned",
        "time": "tonight",
        "champion": 4,
        "versions": [1, 3],
        "keep": 1,
        "by": "ann",
    }
    assert releases.record_of(3) == {"decision": "published", "champion": 2, "version": 3}
    assert content(releases.champion()) == "4"
    assert [path.name for path in (tmp_path / "state" / "releases").iterdir() if path.is_dir()] != []
    assert list((tmp_path / "state" / "releases").glob(".tmp-*")) == []
    assert releases.prune(1, "later") == []
    assert len(releases.records()) == 5 + 1 + 1 + 1  # published, two rollbacks, one pruning


def test_a_pruned_version_is_gone_for_good_and_the_error_says_so(releases):
    publish(releases, 0, 1, 2)
    releases.prune(1, "2026-01-02")
    with pytest.raises(
        NotFoundError, match=r"one of \[0, 2, 3\]; the weights of version 1 were pruned on 2026"
    ):
        releases.rollback(1, "today")
    with pytest.raises(NotFoundError, match="were pruned"):
        releases.release(1)
    assert releases.champion_version() == 3
    releases.rollback(2, "today")
    assert releases.rollback(None, "today") is None  # version 1 is left out


def test_a_number_is_never_given_twice(releases):
    publish(releases, 0, 1, 2)
    releases.prune(1, "today")
    for version in (2, 3):
        (releases.release(version).folder / "adapter_model.safetensors").unlink()
        releases.release(version).folder.rmdir()
    assert releases.versions() == [0]
    assert releases.publish(writer("four"), {"decision": "published"}).version == 4


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "2", None])
def test_pruning_refuses_what_is_no_number_of_versions(releases, keep):
    publish(releases, 0, 1)
    with pytest.raises(InputError, match=r"keep: .* at least 1"):
        releases.prune(keep, "today")
    assert releases.versions() == [0, 1, 2]


def test_pruning_needs_to_know_what_serves(releases, tmp_path):
    publish(releases, 0, 1, 2)
    (tmp_path / "state" / "champion.json").write_text("{")
    with pytest.raises(AdapterError, match="names no version"):
        releases.prune(1, "today")
    assert releases.versions() == [0, 1, 2, 3]


def test_what_cannot_be_done_leaves_no_state_folder(releases, tmp_path):
    with pytest.raises(NotFoundError):
        releases.rollback(3, "today")
    assert not (tmp_path / "state").exists()


def prune_endlessly(state, ready):
    releases = Releases(state)
    ready.set()
    while True:
        releases.publish(writer("x" * 50_000), {"decision": "published"})
        releases.prune(2, "now")


def test_a_kill_at_any_moment_of_pruning_loses_nothing_that_is_needed(tmp_path):
    state = tmp_path / "state"
    context = multiprocessing.get_context("fork")
    waits = random.Random(1)
    for _ in range(12):
        ready = context.Event()
        process = context.Process(target=prune_endlessly, args=(state, ready))
        process.start()
        assert ready.wait(60)
        time.sleep(waits.uniform(0.0, 0.05))
        process.kill()
        process.join()
        releases = Releases(state)
        champion = releases.champion()
        assert champion is None or len(content(champion)) == 50_000
        for version in releases.versions()[1:]:
            assert len(content(releases.release(version))) == 50_000
    for _ in range(3):
        releases.publish(writer("x" * 50_000), {"decision": "published"})
    releases.prune(2, "at last")
    kept, records = releases.versions()[1:], releases.records()
    assert len(kept) == 2
    pruned = [version for record in records for version in record.get("versions", ())]
    published = [record["version"] for record in records if record["decision"] == "published"]
    assert len(published) == len(set(published))
    # A version that a kill kept from serving has no record of its own.
    assert set(published) <= {*pruned, *kept}
    assert set(pruned).isdisjoint(kept)
    assert len(pruned) == len(set(pruned))
    assert not (state / "releases" / "pruning.json").exists()


def test_a_pruning_that_was_cut_off_is_finished_by_the_next_writer(releases, tmp_path):
    publish(releases, 0, 1, 2)
    record = {"decision": "pruned", "time": "then", "champion": 3, "versions": [1], "keep": 2}
    (tmp_path / "state" / "releases" / "pruning.json").write_text(json.dumps(record))
    assert releases.versions() == [0, 1, 2, 3]
    releases.record({"decision": "refused"})
    assert releases.versions() == [0, 2, 3]
    assert releases.records()[-2:] == [record, {"decision": "refused"}]
