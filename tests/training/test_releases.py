import multiprocessing
import random
import time

import pytest

from lib.errors import AdapterError, NotFoundError
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
