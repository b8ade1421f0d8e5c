"""Prepares the next batches in a thread while the session runs: its reason is to hide the work behind the step."""

import queue
import threading


def prefetched(items, depth=2):
    """Yields the items of an iterator that a thread runs up to `depth` items ahead; its exceptions are raised here."""
    ready = queue.Queue(depth)
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
            put((None, StopIteration()))
        except BaseException as error:  # whatever it is, it belongs to the consumer
            put((None, error))

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
        thread.join()
