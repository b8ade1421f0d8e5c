"""Work that threads do ahead."""

import itertools
import threading

import pytest

from support.machine import cores
from support.prefetch import mapped_by_threads, prefetched


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


def test_the_time_for_which_the_consumer_waits_is_reported(monkeypatch):
    clock = itertools.count()  # a second passes between any two looks at it
    monkeypatch.setattr("support.prefetch.time.monotonic", lambda: next(clock))
    waits = []
    assert list(prefetched(iter("ab"), waited=waits.append)) == ["a", "b"]
    assert waits == [1, 1, 1]  # the last one for the end


@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_several_threads_work_at_the_same_time():
    both = threading.Barrier(2)
    list(mapped_by_threads(lambda _: both.wait(60), range(2), ahead=2))  # fails unless both wait together


def test_the_results_of_threads_keep_the_order_and_errors_are_raised_where_they_belong():
    def inverse(number):
        return 12 / number

    results = mapped_by_threads(inverse, [3, 2, 0, 1], ahead=4)
    assert [next(results), next(results)] == [4, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)
