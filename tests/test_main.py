"""What the app changes of MONAI Label's, without a server."""

import logging
from pathlib import Path

import pytest
from monailabel.utils.sessions import SessionInfo, Sessions

from main import MedsaApp


def test_a_half_written_session_does_not_end_all_that_is_scheduled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MONAI Label cleans up in the thread that the nights hang on."""
    (tmp_path / "half-written").mkdir()
    sessions = Sessions(str(tmp_path))
    sessions["open"] = SessionInfo()
    with pytest.raises(AttributeError):
        sessions.remove_expired()
    app = MedsaApp.__new__(MedsaApp)
    app._sessions = sessions
    with caplog.at_level(logging.ERROR):
        app.cleanup_sessions()
    assert "sessions could not be cleaned up" in caplog.text
