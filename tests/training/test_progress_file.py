from datetime import UTC, datetime, timedelta

import pytest

from lib.training.progress_file import ProgressFile, read_progress

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_it_reads_what_was_written(tmp_path):
    progress = ProgressFile(tmp_path, pid=42, started=START, version=3, best_metric=0.75, loss=0.5)
    progress.write("training", 0.256, START + timedelta(seconds=61.9))
    assert read_progress(tmp_path) == {
        "epoch": 26,
        "total_epochs": 100,
        "best_metric": 0.75,
        "total_time": "0:01:01",
        "start_ts": 1767225600,
        "status": "training",
        "version": 3,
        "loss": 0.5,
        "running": True,
        "pid": 42,
    }
    progress.write("published", 1.0, START, running=False)
    assert read_progress(tmp_path)["running"] is False


@pytest.mark.parametrize("text", [None, "", "{", "[1]"])
def test_without_a_readable_file_there_is_no_progress(tmp_path, text):
    if text is not None:
        (tmp_path / "progress.json").write_text(text)
    assert read_progress(tmp_path) == {}
