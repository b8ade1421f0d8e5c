"""Preparing batches in a background thread."""

import threading

import pytest

from support.prefetch import prefetched


def test_all_items_in_order():
    assert list(prefetched(iter(range(100)))) == list(range(100))


def test_an_exception_is_raised_in_the_consumer():
    def items():
        yield 1
        raise KeyError("no more")

    taken = prefetched(items())
    assert next(taken) == 1
    with pytest.raises(KeyError, match="no more"):
        next(taken)


def test_the_thread_runs_ahead_by_depth_and_ends_with_the_consumer():
    made = []
    third = threading.Event()

    def items():
        for number in range(1000):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    before = threading.active_count()
    taken = prefetched(items(), depth=2)
    assert next(taken) == 0
    assert third.wait(60)  # prepared before the consumer asks
    taken.close()
    assert threading.active_count() == before and len(made) < 10
