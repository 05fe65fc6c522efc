import os

from lib.training.clicks_first import PATIENCE_SECONDS, ClicksFirst, ClickSign


class Clock:
    """Time that only sleeping moves."""

    def __init__(self):
        self.now = 1_000_000.0

    def sleep(self, seconds):
        self.now += seconds


def training_side(state, clock):
    return ClicksFirst(state / "clicked", now=lambda: clock.now, sleep=clock.sleep)


def clicked_at(state, moment):
    ClickSign(state).touch()
    os.utime(state / "clicked", (moment, moment))


def test_without_a_server_nobody_clicks(tmp_path):
    assert training_side(tmp_path / "none", Clock()).wait(lambda: False) == 0.0


def test_it_waits_until_nobody_has_clicked_for_a_moment(tmp_path):
    clock, frees = Clock(), []
    clicked_at(tmp_path, clock.now - 0.2)
    waited = training_side(tmp_path, clock).wait(lambda: False, lambda: frees.append(1))
    assert 0.4 < waited < 0.7
    assert frees == [1]


def test_a_click_of_long_ago_costs_nothing(tmp_path):
    clock = Clock()
    clicked_at(tmp_path, clock.now - 5)
    assert training_side(tmp_path, clock).wait(lambda: False) == 0.0


def test_clicks_without_end_do_not_end_training(tmp_path):
    clock = Clock()
    clicked_at(tmp_path, clock.now)

    def click_on():
        os.utime(tmp_path / "clicked", (clock.now, clock.now))
        return False

    waited = training_side(tmp_path, clock).wait(click_on)
    assert PATIENCE_SECONDS <= waited < PATIENCE_SECONDS + 1


def test_a_stop_ends_the_waiting(tmp_path):
    clock = Clock()
    clicked_at(tmp_path, clock.now)
    assert training_side(tmp_path, clock).wait(lambda: True) == 0.0


def test_a_clock_that_was_set_back_does_not_hold_training_up(tmp_path):
    clock = Clock()
    clicked_at(tmp_path, clock.now + 3600)
    assert training_side(tmp_path, clock).wait(lambda: False) == 0.0


def test_where_nothing_can_be_written_a_click_is_still_answered(tmp_path):
    (tmp_path / "state").write_text("a file, no folder")
    ClickSign(tmp_path / "state").touch()
