"""How is work done ahead: batches while the session runs a step, image files by all cores?"""

import collections
import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from support.machine import cores

_END = object()


def prefetched(items, depth=2, waited=lambda seconds: None):
    """Yields the items of an iterator. A thread runs the iterator up to `depth` items ahead.

    An exception of the iterator is raised in the consumer's thread. `waited` is called with the seconds for which the
    consumer waits, for each item.
    """
    ready = queue.Queue(depth)  # of (item, error); error is _END after the last item
    stopped = threading.Event()

    def put(entry):
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                pass

    def produce():
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, _END))
        except BaseException as error:  # of any type: the consumer raises it
            put((None, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            start = time.monotonic()
            item, error = ready.get()
            waited(time.monotonic() - start)
            if error is _END:
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()


def mapped_by_threads(function, items, ahead):
    """Yields function(item) for each item, in order. Threads, one for each core, compute `ahead` of them in advance."""
    items, waiting = iter(items), collections.deque()
    with ThreadPoolExecutor(cores()) as threads:
        try:
            while True:
                for item in itertools.islice(items, ahead - len(waiting)):
                    waiting.append(threads.submit(function, item))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
