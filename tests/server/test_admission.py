"""How many are taken at once."""

import pytest

from lib.errors import BusyError
from lib.server.admission import Admission


def test_a_place_too_many_is_refused_and_one_that_was_left_is_free_again() -> None:
    admission = Admission(2)
    with admission.place():
        with admission.place():
            with pytest.raises(BusyError, match="all 2 places") as refused, admission.place():
                pytest.fail("there was no place")
            assert refused.value.retry_after_s >= 1
        with admission.place():
            pass


def test_an_error_gives_the_place_back() -> None:
    admission = Admission(1)
    with pytest.raises(ZeroDivisionError), admission.place():
        raise ZeroDivisionError
    with admission.place():
        pass
