"""How do thousands of variables each get another one, such as a slot of an optimizer, or an update, in little time?

Hundreds of calls of `tf.get_variable` or `assign_sub` take seconds. Here each kind of operations is one GraphDef.
"""

import tensorflow.compat.v1 as tf
from tensorflow.core.framework import variable_pb2
from tensorflow.python.ops.resource_variable_ops import ResourceVariable


def companions(variables, suffix, initial_values=None):
    """For each variable another one of the same type, shape and device, which is not trained.

    Args:
        variables: resource variables of the default graph.
        suffix: what follows the name of a variable in that of its companion.
        initial_values: for each variable, the tensor with which its companion begins; None: zeros.
    Returns:
        a list of resource variables. They are in the collection of global variables.
    """
    if initial_values is None:
        kinds = [(variable.dtype.base_dtype, tuple(variable.shape.as_list())) for variable in variables]
        zeros = {kind: tf.zeros(kind[1], kind[0]) for kind in set(kinds)}
        initial_values = [zeros[kind] for kind in kinds]
    definition = _empty_definition()
    made = []
    for variable, initial in zip(variables, initial_values):
        name = variable.op.name + suffix
        _add_node(definition, variable, "VarHandleOp", name, [], dtype=_type(variable),
                  shape=tf.AttrValue(shape=variable.shape.as_proto()), shared_name=tf.AttrValue(s=name.encode()))
        _add_node(definition, variable, "AssignVariableOp", name + "/Assign", [name, initial.name],
                  dtype=_type(variable))
        _add_node(definition, variable, "ReadVariableOp", name + "/Read/ReadVariableOp", [name], dtype=_type(variable))
        made.append(variable_pb2.VariableDef(
            variable_name=name + ":0", initial_value_name=initial.name, initializer_name=name + "/Assign",
            snapshot_name=name + "/Read/ReadVariableOp:0", is_resource=True, trainable=False))
    tf.import_graph_def(definition, {initial.name: initial for initial in initial_values}, name="")
    made = [ResourceVariable(variable_def=each) for each in made]
    for each in made:
        tf.add_to_collection(tf.GraphKeys.GLOBAL_VARIABLES, each)
    return made


def move(variables, shares, targets=None):
    """Moves each variable by a share of the way to its target: variable ← variable - share · (variable - target).

    Args:
        variables: resource variables of the default graph.
        shares: for each variable, a scalar tensor of its type. Nothing is read before it is computed, so that what the
            share depends on comes before the move.
        targets: for each variable, another one of its type, shape and device; None: 0.
    Returns:
        a list of operations.
    """
    definition = _empty_definition()
    outside = {share.name: share for share in shares}
    inside = {name: "share_%d" % index for index, name in enumerate(outside)}
    for name, share in outside.items():
        definition.node.add(op="Identity", name=inside[name], input=[name], attr=dict(T=_type(share)))
    for variable, share, target in zip(variables, shares, targets or [None] * len(variables)):
        name, share = variable.op.name, inside[share.name]
        outside[variable.handle.name] = variable.handle
        _add_node(definition, variable, "ReadVariableOp", name + "/value", [variable.handle.name, "^" + share],
                  dtype=_type(variable))
        way = name + "/value"
        if target is not None:
            outside[target.handle.name] = target.handle
            _add_node(definition, variable, "ReadVariableOp", name + "/target", [target.handle.name, "^" + share],
                      dtype=_type(variable))
            way = name + "/way"
            _add_node(definition, variable, "Sub", way, [name + "/value", name + "/target"], T=_type(variable))
        _add_node(definition, variable, "Mul", name + "/step", [share, way], T=_type(variable))
        _add_node(definition, variable, "AssignSubVariableOp", name + "/move", [variable.handle.name, name + "/step"],
                  dtype=_type(variable))
    graph = tf.get_default_graph()
    if hasattr(graph, "capture"):  # a branch of tf.cond, such as that of float16's loss scaling, is a graph of its own
        outside = {name: graph.capture(tensor) for name, tensor in outside.items()}
    return tf.import_graph_def(definition, outside, [variable.op.name + "/move" for variable in variables], name="move")


def _empty_definition():
    # The graph gets the lowest of all versions that are imported, and without this it would be 0.
    return tf.GraphDef(versions=tf.get_default_graph().graph_def_versions)


def _type(x):
    return tf.AttrValue(type=x.dtype.base_dtype.as_datatype_enum)


def _add_node(definition, variable, op, name, inputs, **attributes):
    """Adds an operation on the device of a variable."""
    definition.node.add(op=op, name=name, device=variable.device, input=inputs, attr=attributes)
