import pytest

from lib.datastore.outbox import Outbox, Parcel
from lib.errors import LabelError, PacsError, PacsUnreachableError

FIRST, SECOND = Parcel("1.2.3", 1, "a" * 64), Parcel("1.2.4", 1, "b" * 64)


class Post:
    """Where parcels are sent to; `away` raises, `refuses` refuses for good."""

    def __init__(self):
        self.arrived, self.away, self.refuses = [], False, False

    def __call__(self, parcel):
        if self.away:
            raise PacsUnreachableError("the PACS cannot be reached")
        if self.refuses:
            raise LabelError("label: it is empty")
        self.arrived.append(parcel)


@pytest.fixture
def post():
    return Post()


def test_what_is_put_in_is_sent_once_and_is_ours_all_along(tmp_path, post):
    box = Outbox(tmp_path, post)
    assert not box.is_ours(FIRST.series)
    box.put(FIRST)
    assert box.is_ours(FIRST.series)
    assert box.deliver() is None
    assert (post.arrived, box.waiting()) == ([FIRST], [])
    assert box.is_ours(FIRST.series)
    box.deliver()
    assert post.arrived == [FIRST]


def test_it_outlasts_a_restart_and_keeps_the_order(tmp_path, post):
    post.away = True
    box = Outbox(tmp_path, post)
    box.put(SECOND)
    box.put(FIRST)
    assert box.deliver() == "a label waits: the PACS cannot be reached"
    again = Outbox(tmp_path, post)
    assert again.waiting() == [SECOND, FIRST]
    post.away = False
    assert again.deliver() is None
    assert post.arrived == [SECOND, FIRST]


def test_what_can_never_be_sent_holds_up_nothing(tmp_path, post):
    box = Outbox(tmp_path, post)
    post.refuses = True
    box.put(FIRST)
    assert box.deliver() is None
    assert (box.waiting(), box.refused()) == ([], {"1.2.3-000001": "label: it is empty"})
    post.refuses = False
    box.put(SECOND)
    box.deliver()
    assert post.arrived == [SECOND]


def test_names_follow_from_the_content():
    assert Parcel("1.2.3", 1, "a" * 64).instance == FIRST.instance
    names = {
        one.instance for one in (FIRST, SECOND, Parcel("1.2.3", 2, "a" * 64), Parcel("1.2.3", 1, "c" * 64))
    }
    assert len(names) == 4
    assert FIRST.series != FIRST.instance


def test_whatever_one_parcel_does_the_others_are_sent(tmp_path):
    sent = []

    def send(parcel):
        if parcel == FIRST:
            raise AttributeError("what highdicom stumbled over")
        sent.append(parcel)

    box = Outbox(tmp_path, send)
    box.put(FIRST)
    box.put(SECOND)
    assert box.deliver() == "the label 1.2.3-000001 waits: what highdicom stumbled over"
    assert (sent, box.waiting()) == ([SECOND], [FIRST])


def test_what_the_pacs_refuses_today_is_tried_again(tmp_path):
    answers = iter([PacsError("the PACS answered 409"), None])

    def send(parcel):
        error = next(answers)
        if error:
            raise error

    box = Outbox(tmp_path, send)
    box.put(FIRST)
    assert "409" in box.deliver()
    assert (box.waiting(), box.knows(FIRST)) == ([FIRST], True)
    assert box.deliver() is None
    assert (box.waiting(), box.knows(FIRST)) == ([], True)


def test_a_damaged_parcel_is_passed_over(tmp_path, post):
    box = Outbox(tmp_path, post)
    box.put(FIRST)
    (tmp_path / ".medsa" / "outbox" / "damaged.json").write_text("{")
    box.deliver()
    assert post.arrived == [FIRST]
