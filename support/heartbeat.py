"""How does a worker detect that another worker is lost?"""

import os
import sys
import threading
import time

import tensorflow.compat.v1 as tf

from support import say

START_PATIENCE = 10  # time-outs: how long to wait for a worker at the start
HEARTBEAT_SECONDS = 1.0  # interval between two heartbeats


class Heartbeat:
    """Threads that send a heartbeat request to other workers every second.

    If a worker does not answer in time, a thread ends this process. The main thread cannot do so, because a session
    that waits for a lost worker may never return.

    Args:
        target: address of this process's server.
        workers: addresses of all workers.
        task: index of this worker.
        others: indices of the workers to monitor.
        timeout: seconds of silence after which a worker is lost.
    """

    def __init__(self, target, workers, task, others, timeout):
        self.leaving = False
        self._workers = workers
        self._timeout = timeout
        self._heard = {}
        self._all_here = threading.Event()
        self._began = time.monotonic()
        self._others = list(others)
        for other in self._others:
            threading.Thread(target=self._listen, args=(target, task, other), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def wait(self):
        """Waits until all monitored workers have answered once."""
        if not self._all_here.wait(5.0):
            missing = [self._name(other) for other in self._others if other not in self._heard]
            say("waiting for %s" % ", ".join(missing))
            self._all_here.wait()

    def hurry(self):
        """Call this after a session error. Ends this process if another worker is silent now, else returns."""
        self._timeout = min(self._timeout, 5 * HEARTBEAT_SECONDS)
        time.sleep(2 * self._timeout)

    def _listen(self, target, task, other):
        """Runs an operation on the other worker every second."""
        config = tf.ConfigProto(isolate_session_state=True, device_filters=[
            "/job:worker/task:%d" % task, "/job:worker/task:%d" % other])
        with tf.Graph().as_default() as graph:
            with tf.device("/job:worker/task:%d/cpu:0" % other):
                sign = tf.random.stateless_uniform([], [0, 0])  # a constant would stay in this process
        try:
            with tf.Session(target, config=config, graph=graph) as sess:
                while True:
                    sess.run(sign)
                    self._heard[other] = time.monotonic()
                    if len(self._heard) == len(self._others):
                        self._all_here.set()
                    time.sleep(HEARTBEAT_SECONDS)
        except tf.errors.OpError:
            if not self.leaving:
                self._end("%s was lost" % self._name(other))

    def _judge(self):
        while not self.leaving:
            now = time.monotonic()
            for other in self._others:
                if other not in self._heard:
                    if now - self._began > START_PATIENCE * self._timeout:
                        self._end("%s did not come within %g seconds" % (self._name(other),
                                                                         START_PATIENCE * self._timeout))
                elif now - self._heard[other] > self._timeout:
                    self._end("%s was lost, silent for %g seconds" % (self._name(other), self._timeout))
            time.sleep(HEARTBEAT_SECONDS / 4)

    def _name(self, task):
        return "worker %d (%s)" % (task, self._workers[task])

    def _end(self, what):
        try:
            print("Densenet.py: %s: start all workers again, they resume from the newest checkpoint" % what,
                  file=sys.stderr, flush=True)
        except (OSError, ValueError):
            pass  # the terminal is gone, or the stream is closed: the process has to end all the same
        finally:
            os._exit(1)
