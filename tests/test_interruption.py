"""The first signal requests a stop; the second one stops the program immediately."""

import os
import signal

import pytest

from support.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_requests_a_stop_and_the_second_stops_at_once(number):
    class Second(Exception):
        pass

    def stop(*_):
        raise Second

    before = signal.signal(number, stop)
    try:
        with pytest.raises(Second), Interruption() as interruption:
            assert interruption.signal_number is None
            os.kill(os.getpid(), number)
            assert interruption.signal_number == number
            os.kill(os.getpid(), number)
            pytest.fail("the second signal was waited with, too")
        with Interruption():
            assert signal.getsignal(number) != stop
        assert signal.getsignal(number) == stop
    finally:
        signal.signal(number, before)
