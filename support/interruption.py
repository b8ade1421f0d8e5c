"""How does a signal stop a run after the current step, with everything saved?"""

import signal
import threading

# A person or a scheduler asks to stop; the second of these signals stops the process at once.
URGENT = (signal.SIGINT, signal.SIGTERM)
# A dropped connection, and what schedulers send some time before they kill. They may come twice, or before SIGTERM.
WARNINGS = tuple(getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
                 if hasattr(signal, name))  # Windows has none of them


class Stopped(Exception):
    """A signal stopped the run. The run is saved."""

    def __init__(self, signal_number, message):
        super().__init__(message)
        self.signal_number = signal_number


class Interruption:
    """A context manager that records a request to stop by one of the signals URGENT and WARNINGS.

    `signal_number` is None until the first signal, and then that signal's number. The first urgent signal restores the
    handlers of the urgent signals, so that a second urgent one stops the process at once. Warnings never do.

    A signal that was ignored before stays ignored (nohup, a background job of a script). So does a handler for a
    warning that the program around this one has set.
    """

    def __init__(self):
        self.signal_number = None
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            for number in URGENT + WARNINGS:
                before = signal.getsignal(number)  # None: not set by Python, and Python could not restore it
                if before == signal.SIG_DFL or number in URGENT and before not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        self._restore(URGENT + WARNINGS)

    def _ask(self, number, _frame):
        self.signal_number = self.signal_number or number
        if number in URGENT:
            self._restore(URGENT)

    def _restore(self, numbers):
        for number in numbers:
            if number in self._previous:
                signal.signal(number, self._previous.pop(number))
