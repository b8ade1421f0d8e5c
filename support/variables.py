"""How do thousands of variables each get another one, such as a slot of an optimizer, in little time?"""

import tensorflow.compat.v1 as tf
from tensorflow.core.framework import variable_pb2
from tensorflow.python.ops.resource_variable_ops import ResourceVariable


def companions(variables, suffix, initial_values=None):
    """For each variable another one of the same type, shape and device, which is not trained.

    All are made from one GraphDef, as hundreds of calls of `tf.get_variable` take seconds.

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
    # The graph gets the lowest of all versions that are imported, and without this it would be 0.
    definition = tf.GraphDef(versions=tf.get_default_graph().graph_def_versions)
    made = []
    for variable, initial in zip(variables, initial_values):
        name = variable.op.name + suffix
        dtype = tf.AttrValue(type=variable.dtype.base_dtype.as_datatype_enum)
        facts = dict(dtype=dtype, shape=tf.AttrValue(shape=variable.shape.as_proto()),
                     shared_name=tf.AttrValue(s=name.encode()))
        definition.node.add(op="VarHandleOp", name=name, device=variable.device, attr=facts)
        for op, part, inputs in (("AssignVariableOp", "/Assign", [name, initial.name]),
                                 ("ReadVariableOp", "/Read/ReadVariableOp", [name])):
            definition.node.add(op=op, name=name + part, device=variable.device, input=inputs, attr=dict(dtype=dtype))
        made.append(variable_pb2.VariableDef(
            variable_name=name + ":0", initial_value_name=initial.name, initializer_name=name + "/Assign",
            snapshot_name=name + "/Read/ReadVariableOp:0", is_resource=True, trainable=False))
    tf.import_graph_def(definition, {initial.name: initial for initial in initial_values}, name="")
    made = [ResourceVariable(variable_def=each) for each in made]
    for each in made:
        tf.add_to_collection(tf.GraphKeys.GLOBAL_VARIABLES, each)
    return made
