"""What is one of the devices that share each batch, and how do they combine values?"""

import contextlib

import tensorflow.compat.v1 as tf
from tensorflow.python.ops import collective_ops

# A collective operation has the number of its group, and a number of its own that is the same in every member.
_GROUP = 2
_FIRST_NUMBER = 1000000


def all_sum(x, members, group, number):
    """The sum of a tensor over the members of a group, at least two, in each of them."""
    return collective_ops.all_reduce(x, members, group, number, "Add", "Id")


class Replica:
    """One of the devices that share each batch, with a copy of the network on its process's variables.

    Attributes:
        index, count: its number, and the number of replicas in all processes.
        device: the device's name; empty for TensorFlow's own choice.
        has_variables: whether its device holds the variables, which is so for the first replica of each process.
        sync_batch_norm: whether batch normalization takes its statistics over all replicas.
    """

    def __init__(self, index, count, device, has_variables, sync_batch_norm):
        self.index = index
        self.count = count
        self.device = device
        self.has_variables = has_variables
        self.sync_batch_norm = sync_batch_norm
        self._number = _FIRST_NUMBER

    @contextlib.contextmanager
    def scope(self):
        """A context for building this replica's network and gradients, on its device and on the shared variables."""
        with tf.device(self.device), contextlib.ExitStack() as stack:
            if self.count > 1:
                stack.enter_context(tf.name_scope("replica_%d" % self.index))
            if not self.has_variables:
                stack.enter_context(tf.variable_scope(tf.get_variable_scope(), reuse=True))
            yield

    def mean_over_all(self, x):
        """The mean of a tensor over all replicas. The gradient is the mean of the replicas' gradients."""
        @tf.custom_gradient
        def function(x):
            return self._mean(x), self._mean

        return function(x)

    def _mean(self, x):
        self._number += 1  # the same in every replica, as all build the same graph
        return all_sum(x, self.count, _GROUP, self._number) / self.count
