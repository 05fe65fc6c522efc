"""Who gets the device when: fairness, background work, deadlines and clients that leave."""

import random
import threading
import time
from collections.abc import Callable

import pytest

from lib.errors import BusyError, ClientGoneError
from lib.turns import POLL_SECONDS, Asker, DeviceTurns

PATIENCE_S = 30.0


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """Threads that ask for turns one after the other, and the order in which they got them."""

    def __init__(self, turns: DeviceTurns) -> None:
        self.turns = turns
        self.order: list[str] = []
        self.threads: list[threading.Thread] = []

    def enter(self, name: str, asker: Asker, chunks: int = 1) -> None:
        """Waits until the new thread stands in line, so that who comes first is certain."""
        before = self.waiting()

        def run() -> None:
            with self.turns.turn(asker) as turn:
                for chunk in range(chunks):
                    if chunk:
                        turn.give_way()
                    self.order.append(name)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self.threads.append(thread)
        until(lambda: self.waiting() == before + 1)

    def waiting(self) -> int:
        lines = [*self.turns._clients.values(), self.turns._background]
        return sum(len(line) for line in lines)

    def finish(self) -> list[str]:
        for thread in self.threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "somebody waits for ever"
        return self.order


def until(holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.fixture
def stage() -> Stage:
    return Stage(DeviceTurns())


def is_free(turns: DeviceTurns) -> bool:
    return turns._holder is None and not turns._clients and not turns._background


def test_clients_take_turns_whatever_the_number_of_their_requests(stage: Stage) -> None:
    with stage.turns.turn(Asker("ann")):
        for number in range(4):
            stage.enter(f"ann{number}", Asker("ann"))
        for name in ("bob0", "cem0", "bob1"):
            stage.enter(name, Asker(name[:3]))
    assert stage.finish() == ["bob0", "cem0", "ann0", "bob1", "ann1", "ann2", "ann3"]
    assert is_free(stage.turns)


def test_a_client_that_has_just_been_served_is_the_last(stage: Stage) -> None:
    with stage.turns.turn(Asker("ann")):
        stage.enter("ann1", Asker("ann"))  # in line before bob, but ann holds the turn now
        stage.enter("bob", Asker("bob"))
    assert stage.finish() == ["bob", "ann1"]


def test_background_work_waits_for_every_click(stage: Stage) -> None:
    with stage.turns.turn(Asker("ann")):
        stage.enter("warm", Asker("ann", background=True))
        stage.enter("bob", Asker("bob"))
        stage.enter("ann", Asker("ann"))
    assert stage.finish() == ["bob", "ann", "warm"]


def test_background_work_lets_all_clicks_go_between_its_chunks(stage: Stage) -> None:
    with stage.turns.turn(Asker("warm", background=True)) as turn:
        stage.order.append("warm0")
        stage.enter("later", Asker("later", background=True))
        for name in ("ann", "bob"):
            stage.enter(name, Asker(name))
        stage.enter("ann", Asker("ann"))
        turn.give_way()
        stage.order.append("warm1")
    assert stage.finish() == ["warm0", "ann", "bob", "ann", "warm1", "later"]


def test_a_long_request_lets_each_other_client_go_once(stage: Stage) -> None:
    with stage.turns.turn(Asker("ann")) as turn:
        stage.enter("ann again", Asker("ann"))
        for name in ("bob", "bob", "cem"):
            stage.enter(name, Asker(name))
        for _ in range(2):
            turn.give_way()
            stage.order.append("ann goes on")
    assert stage.finish() == ["bob", "cem", "ann goes on", "bob", "ann goes on", "ann again"]


def test_two_long_requests_go_chunk_by_chunk(stage: Stage) -> None:
    with stage.turns.turn(Asker("cem")):
        for name in ("ann", "bob"):
            stage.enter(name, Asker(name), chunks=3)
    assert stage.finish() == ["ann", "bob"] * 3


def test_giving_way_to_nobody_changes_nothing(stage: Stage) -> None:
    with stage.turns.turn(Asker("ann")) as turn:
        stage.enter("warm", Asker("bob", background=True))
        turn.give_way()
        assert stage.order == []
    assert stage.finish() == ["warm"]


def test_an_error_gives_the_turn_back() -> None:
    turns = DeviceTurns()
    with pytest.raises(ZeroDivisionError), turns.turn(Asker()):
        raise ZeroDivisionError
    assert is_free(turns)


def test_who_waits_too_long_is_told_how_long_and_leaves_the_line() -> None:
    clock = Clock()
    turns, failures = DeviceTurns(clock), []
    asker = Asker("bob", deadline=clock.now + 5, limit_s=5)

    def ask() -> None:
        try:
            with turns.turn(asker):
                pass
        except BusyError as error:
            failures.append(error)

    with turns.turn(Asker("ann")):
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: "bob" in turns._clients)
        clock.now += 6.5
        thread.join(PATIENCE_S)
        assert "bob" not in turns._clients
    assert str(failures[0]) == (
        "the model is busy: not done after 6.5 s, 6.5 s of them waiting; the limit is 5 s"
    )
    assert failures[0].retry_after_s == 7
    assert is_free(turns)


def test_who_leaves_while_waiting_leaves_the_line() -> None:
    turns, asker, failures = DeviceTurns(), Asker("bob"), []

    def ask() -> None:
        try:
            with turns.turn(asker):
                failures.append("was served")
        except ClientGoneError:
            failures.append("left")

    with turns.turn(Asker("ann")):
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: "bob" in turns._clients)
        asker.gone.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert "bob" not in turns._clients
    assert failures == ["left"]
    assert is_free(turns)


@pytest.mark.parametrize("background", [False, True])
def test_giving_way_notices_that_it_is_too_late(background: bool) -> None:
    clock = Clock()
    turns = DeviceTurns(clock)

    def work() -> None:
        with turns.turn(Asker("ann", background, deadline=clock.now + 5)) as turn:
            turn.give_way()
            clock.now += 5
            turn.give_way()

    with pytest.raises(BusyError, match=r"not done after 5\.0 s, 0\.0 s of them waiting$"):
        work()
    assert is_free(turns)


@pytest.mark.parametrize("background", [False, True])
def test_giving_way_notices_that_nobody_reads_the_answer(background: bool) -> None:
    turns, asker = DeviceTurns(), Asker("ann", background)

    def work() -> None:
        with turns.turn(asker) as turn:
            asker.gone.set()
            turn.give_way()

    with pytest.raises(ClientGoneError):
        work()
    assert is_free(turns)


def test_who_comes_too_late_or_has_left_is_not_served_at_all() -> None:
    turns, gone = DeviceTurns(), Asker("ann")
    gone.gone.set()
    with pytest.raises(ClientGoneError), turns.turn(gone):
        pytest.fail("it was served")
    with pytest.raises(BusyError), turns.turn(Asker("ann", deadline=time.monotonic() - 1)):
        pytest.fail("it was served")
    assert is_free(turns)


def test_who_leaves_while_giving_way_does_not_disturb_the_holder() -> None:
    turns, asker = DeviceTurns(), Asker("ann")
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.turn(Asker("bob")):
            held.set()
            go_on.wait(PATIENCE_S)

    holder = threading.Thread(target=hold)

    def leave() -> None:
        held.wait(PATIENCE_S)
        asker.gone.set()

    def work() -> None:
        with turns.turn(asker) as turn:
            holder.start()
            until(lambda: "bob" in turns._clients)
            threading.Thread(target=leave).start()
            turn.give_way()

    with pytest.raises(ClientGoneError):
        work()
    assert turns._holder is not None
    assert turns._holder.asker.client == "bob"
    go_on.set()
    holder.join(PATIENCE_S)
    assert is_free(turns)


def test_the_time_that_was_waited_is_known() -> None:
    clock = Clock()
    turns, waited = DeviceTurns(clock), []

    def ask() -> None:
        with turns.turn(Asker("bob")) as turn:
            waited.append(turn.waited_s)

    with turns.turn(Asker("ann")) as turn:
        assert turn.waited_s == 0
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: "bob" in turns._clients)
        clock.now += 3
    thread.join(PATIENCE_S)
    assert waited == [3]


@pytest.mark.parametrize("seed", range(5))
def test_sixteen_threads_never_share_the_turn_and_all_are_served(seed: int) -> None:
    turns = DeviceTurns()
    inside, served, errors = [0], [0] * 16, []
    start = threading.Barrier(16)

    def use(turn_number: int) -> None:
        inside[0] += 1
        if inside[0] != 1:
            errors.append(f"two at once, number {turn_number}")
        inside[0] -= 1

    def work(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        start.wait(PATIENCE_S)
        for _ in range(20):
            asker = Asker(f"client{rng.randrange(5)}", background=number % 5 == 0)
            if rng.random() < 0.1:
                asker.gone.set()
            try:
                with turns.turn(asker) as turn:
                    for _ in range(rng.randrange(1, 4)):
                        use(number)
                        turn.give_way()
                served[number] += 1
            except ClientGoneError:
                served[number] += 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert errors == []
    assert served == [20] * 16
    assert is_free(turns)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_is_passed_twice_by_the_same_client(seed: int) -> None:
    """Whatever the requests: between asking and the turn, another client gets at most one turn more than one's own."""
    rng = random.Random(seed)
    stage = Stage(DeviceTurns())
    names = [f"c{rng.randrange(4)}" for _ in range(24)]
    with stage.turns.turn(Asker(rng.choice(names))):
        for number, name in enumerate(names):
            stage.enter(f"{name} {number}", Asker(name))
    order = stage.finish()
    rounds: dict[str, int] = {}
    for entry in order:
        client = entry.split()[0]
        rounds[client] = rounds.get(client, 0) + 1
        waiting = {name for name in set(names) if rounds.get(name, 0) < names.count(name)}
        assert all(rounds[client] - rounds.get(name, 0) <= 1 for name in waiting)
    for name in set(names):
        numbers = [int(entry.split()[1]) for entry in order if entry.startswith(f"{name} ")]
        assert numbers == sorted(numbers)


def test_clicks_are_told_of_and_background_work_is_not():
    told = []
    turns = DeviceTurns(on_click=lambda: told.append(1))
    with turns.turn(Asker(background=True)) as turn:
        turn.give_way()
        turn.tell()
    assert told == []
    with turns.turn(Asker()) as turn:
        assert len(told) == 1
        turn.give_way()
        assert len(told) == 2
        turn.tell()
        assert len(told) == 3
    assert len(told) == 4


def test_a_click_that_waits_is_told_of_again_and_again():
    told = []
    turns = DeviceTurns(on_click=lambda: told.append(1))
    waiting = Asker(deadline=time.monotonic() + 3 * POLL_SECONDS)
    with turns.turn(Asker(background=True)), pytest.raises(BusyError), turns.turn(waiting):
        pass
    assert len(told) >= 3, "and not only when it came and went"
