"""The first signal requests a stop; a second Ctrl-C or SIGTERM stops the program immediately, a warning never does."""

import contextlib
import os
import signal

import pytest

from support.interruption import URGENT, WARNINGS, Interruption

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def send(number):
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def handled_by(handler, numbers=SIGNALS):
    """Sets a handler for some signals, and the former ones in the end."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


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


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_that_would_end_the_run_requests_a_stop(number):
    with handled_by(signal.SIG_DFL):
        with Interruption() as interruption:
            send(number)
            assert interruption.signal_number == number
        assert signal.getsignal(number) == signal.SIG_DFL


def test_repeated_warnings_never_stop_at_once():
    with handled_by(signal.SIG_DFL), Interruption() as interruption:
        for _ in range(3):
            send(signal.SIGHUP)
            send(signal.SIGUSR1)
        assert interruption.signal_number == signal.SIGHUP  # the first one


@pytest.mark.parametrize("first", [signal.SIGUSR1, signal.SIGHUP])
def test_a_warning_before_sigterm_does_not_count_as_the_first(first):
    stopped = []
    with handled_by(signal.SIG_DFL, WARNINGS), handled_by(lambda number, _: stopped.append(number), URGENT):
        with Interruption() as interruption:
            send(first)
            send(signal.SIGTERM)
            assert not stopped and interruption.signal_number == first
            send(first)  # still no end
            send(signal.SIGTERM)
            assert stopped == [signal.SIGTERM]


def test_ctrl_c_after_sigterm_stops_at_once():
    stopped = []
    with handled_by(lambda number, _: stopped.append(number), URGENT), Interruption():
        send(signal.SIGTERM)
        assert not stopped
        send(signal.SIGINT)
        assert stopped == [signal.SIGINT]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_was_ignored_stays_ignored(number):
    with handled_by(signal.SIG_IGN), Interruption() as interruption:
        send(number)
        assert interruption.signal_number is None and signal.getsignal(number) == signal.SIG_IGN


def test_a_warning_that_the_program_around_handles_stays_with_it():
    got = []
    with handled_by(lambda number, _: got.append(number), WARNINGS), Interruption() as interruption:
        send(signal.SIGUSR1)
        assert got == [signal.SIGUSR1] and interruption.signal_number is None


def test_a_handler_that_python_did_not_set_is_left_alone(monkeypatch):
    """Python cannot restore such a handler: signal.signal(number, None) is an error."""
    with handled_by(signal.SIG_DFL):
        monkeypatch.setattr(signal, "getsignal", lambda number: None)
        with Interruption() as interruption:
            monkeypatch.undo()
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL and interruption.signal_number is None


def test_a_platform_without_the_warnings_still_stops(monkeypatch):
    monkeypatch.setattr("support.interruption.WARNINGS", ())
    with handled_by(signal.SIG_DFL), Interruption() as interruption:
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        send(signal.SIGTERM)
        assert interruption.signal_number == signal.SIGTERM
