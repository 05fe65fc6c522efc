from lib.training.pending import pending_labels

CURRENT = {"a": "1", "b": "2", "c": "3"}


def run(decision, **digests):
    return {"decision": decision, "label_digests": digests}


def test_without_a_run_every_label_is_pending():
    assert pending_labels(CURRENT, []) == ["a", "b", "c"]


def test_new_and_changed_labels_are_pending_used_ones_are_not():
    assert pending_labels(CURRENT, [run("published", a="1", b="old")]) == ["b", "c"]


def test_a_refused_run_has_used_its_labels():
    assert pending_labels(CURRENT, [run("refused", **CURRENT)]) == []


def test_a_refused_run_from_the_base_is_none_of_what_serves():
    night = {**run("refused", **CURRENT), "start": "base"}
    assert pending_labels(CURRENT, [run("published", a="1"), night]) == ["b", "c"]
    assert pending_labels(CURRENT, [run("published", a="1"), {**night, "decision": "published"}]) == []
    assert pending_labels(CURRENT, [{**night, "start": "champion"}]) == []


def test_runs_that_did_not_finish_and_rollbacks_use_nothing():
    records = [run("published", a="1"), run("failed", **CURRENT), run("stopped", **CURRENT)]
    records.append({"decision": "rolled back", "version": 0})
    assert pending_labels(CURRENT, records) == ["b", "c"]


def test_only_the_last_finished_run_counts():
    assert pending_labels(CURRENT, [run("published", **CURRENT), run("refused", a="1")]) == ["b", "c"]


def test_a_deleted_label_is_not_pending():
    assert pending_labels({"a": "1"}, [run("published", a="1", b="2")]) == []


def test_a_record_without_digests_is_tolerated():
    assert pending_labels({"a": "1"}, [{"decision": "published"}, {"note": "from another version"}]) == ["a"]
