"""How does a signal stop a run after the current step, with everything saved?"""

import signal
import threading


class Stopped(Exception):
    """A signal stopped the run. The run is saved."""

    def __init__(self, signal_number, message):
        super().__init__(message)
        self.signal_number = signal_number


class Interruption:
    """A context manager that records a request to stop by SIGINT or SIGTERM.

    `signal_number` is None until the first signal. The first signal restores the previous handlers, so a second signal
    stops the process at once.
    """

    def __init__(self):
        self.signal_number = None
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        self._restore()

    def _ask(self, number, _frame):
        self.signal_number = number
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
