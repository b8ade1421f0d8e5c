"""What is one of the devices that share each batch, how do they get equal networks, and how do they combine values?"""

import contextlib
import re
import threading

import tensorflow.compat.v1 as tf
from tensorflow.python.framework import constant_op
from tensorflow.python.ops import collective_ops

# A collective operation has the number of its group, and a number of its own that is the same in every member.
_GROUP = 2
_FIRST_NUMBER = 1000000
CONSTANTS = "constants/"  # the name scope of constants that operations share
_sharing = threading.RLock()  # what `shared_constants` replaces belongs to all threads


def all_sum(x, members, group, number):
    """The sum of a tensor over the members of a group, at least two, in each of them."""
    return collective_ops.all_reduce(x, members, group, number, "Add", "Id")


def on_each(replicas, build, inputs, alike=True):
    """Builds the same part of the graph on each replica of this process.

    Python builds it for the first replica. The others get copies of its operations, which takes a fifth of the time.

    Args:
        replicas: the Replicas.
        build: a function of a Replica and its tensors that returns a list of tensors.
        inputs: for each replica, a list of tensors, which are alike in type and shape.
        alike: whether the parts differ in their inputs and devices alone. If not, Python builds each of them.
    Returns:
        for each replica, a list of tensors.
    """
    results, first_scope = [], None
    for replica, its_inputs in zip(replicas, inputs):
        with replica.scope() as scope:
            if results and alike:
                replaced = {x.name: its_own for x, its_own in zip(inputs[0], its_inputs)}
                results.append(_copied(results[0], first_scope, scope, replaced))
            else:
                with shared_constants(scope):
                    results.append(list(build(replica, *its_inputs)))
                first_scope = first_scope or scope
    return results


@contextlib.contextmanager
def shared_constants(scope):
    """A context in which equal numbers and lists that operations of a name scope take are one constant.

    TensorFlow makes a constant for each, such as the shape of a reshape: three tenths of a deep network's operations,
    and an eighth of the time of building it. It has no public way to change this, so that one of its private functions
    is replaced within the context. Where dependencies, a condition, a colocation or another device would be a part of
    the constant, it is made as usual.

    Args:
        scope: the name scope, with a slash at the end; empty for the whole graph. The constants are in its CONSTANTS.
    """
    graph, made = tf.get_default_graph(), {}

    def place():
        return (graph._current_control_dependencies(), graph._get_control_flow_context(),
                list(graph._colocation_stack.peek_objs()), graph._device_functions_outer_to_inner)

    outside = place()

    def constant(value, dtype, shape, name, *options, **named):
        if not _is_plain(value) or tf.get_default_graph() is not graph or place() != outside or (
                not ((graph.get_name_scope() or "") + "/").startswith(scope)):
            return usual(value, dtype, shape, name, *options, **named)
        key = repr((value, dtype, shape, options, named))
        if key not in made:
            with tf.name_scope(scope + CONSTANTS):
                made[key] = usual(value, dtype, shape, name, *options, **named)
        return made[key]

    with _sharing:
        usual, constant_op._constant_impl = constant_op._constant_impl, constant
        try:
            yield
        finally:
            constant_op._constant_impl = usual


def _is_plain(value):
    """Whether a value is Python's number or a list of such: of these alone, `repr` tells all, also the type."""
    return type(value) in (bool, int, float) or type(value) in (list, tuple) and all(map(_is_plain, value))


def _copied(tensors, scope, new_scope, replaced):
    """Copies of tensors and of the operations of a name scope that compute them, on the device of the context.

    Args:
        tensors: a list. Those of other scopes are not copied, but may be replaced.
        scope, new_scope: the name scopes of originals and copies, with a slash at the end.
        replaced: {name of a tensor of another scope: what the copies read instead}. What else they read of other
            scopes, such as variables, is shared.
    """
    wanted = [tensor for tensor in tensors if tensor.name.startswith(scope)]
    found, read, waiting = {}, {}, [tensor.op for tensor in wanted]
    while waiting:
        operation = waiting.pop()
        if operation.name not in found:
            found[operation.name] = operation
            read.update((x.name, replaced.get(x.name, x)) for x in operation.inputs if not x.name.startswith(scope))
            before = [x.op for x in operation.inputs] + list(operation.control_inputs)
            waiting += [each for each in before if each.name.startswith(scope)]
    # The graph gets the lowest of all versions that are imported, and without this it would be 0.
    definition = tf.GraphDef(versions=tf.get_default_graph().graph_def_versions)
    for operation in found.values():
        node = definition.node.add()
        node.CopyFrom(operation.node_def)
        node.name = new_scope + node.name[len(scope):]
        node.device = ""  # a variable is read on its own device, whatever the copy of the reading asks for
        node.attr.pop("_class", None)  # to be on the device of another operation, which has another name in the copy
        for place, source in enumerate(node.input):  # name, name:1, or ^name
            node.input[place] = re.sub(r"^(\^?)" + re.escape(scope), r"\1" + new_scope, source)
    copies = iter(tf.import_graph_def(
        definition, read, [new_scope + tensor.name[len(scope):] for tensor in wanted], name=""))
    return [next(copies) if tensor.name.startswith(scope) else replaced.get(tensor.name, tensor) for tensor in tensors]


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
        """A context for building this replica's network and gradients, on its device and on the shared variables.

        Its value is the name scope, with a slash at its end.
        """
        with tf.device(self.device), contextlib.ExitStack() as stack:
            scope = stack.enter_context(tf.name_scope("replica_%d" % self.index)) if self.count > 1 else ""
            if not self.has_variables:
                stack.enter_context(tf.variable_scope(tf.get_variable_scope(), reuse=True))
            yield scope

    def mean_over_all(self, x):
        """The mean of a tensor over all replicas. The gradient is the mean of the replicas' gradients."""
        @tf.custom_gradient
        def function(x):
            return self._mean(x), self._mean

        return function(x)

    def _mean(self, x):
        self._number += 1  # the same in every replica, as all build the same graph or copy it
        return all_sum(x, self.count, _GROUP, self._number) / self.count
