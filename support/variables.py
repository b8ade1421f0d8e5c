"""How are thousands of variables, companions of them such as optimizers' slots, and their updates made in little time?

Hundreds of calls of `tf.get_variable` or `assign_sub` take seconds. Here, operations that belong together are made from
one GraphDef.
"""

import tensorflow.compat.v1 as tf
from tensorflow.core.framework import variable_pb2
from tensorflow.core.protobuf import saver_pb2
from tensorflow.python.ops.resource_variable_ops import ResourceVariable


def get_variables(described):
    """`tf.get_variable` for some float32 variables that begin with constants, in a third of the time.

    Args:
        described: [(name in the current variable scope, shape, initial value of all elements, whether it is trained)].
    Returns:
        a list of resource variables: new ones, or where the scope reuses variables, those that there are.
    """
    new, scope = {}, tf.get_variable_scope().name

    def create(_, name, **options):  # for a variable that is not there yet
        if not new:
            new.update((each.op.name, each) for each in _beginning_with_constants(scope and scope + "/", described))
        return new[name]

    with tf.variable_creator_scope(create):
        return [tf.get_variable(name, shape, tf.float32, trainable=trained, use_resource=True)
                for name, shape, _, trained in described]


def _beginning_with_constants(scope, described):
    """New variables; `scope`: what precedes their names, with a slash at its end; `described`: see `get_variables`."""
    definition, made = _empty_definition(), []
    dtype = tf.AttrValue(type=tf.float32.as_datatype_enum)
    for name, shape, value, trained in described:
        initial = definition.node.add(op="Const", name=scope + name + "/Initializer", attr=dict(
            dtype=dtype, value=tf.AttrValue(tensor=tf.make_tensor_proto(value, tf.float32, shape))))
        made.append(_add_variable(definition, scope + name, tf.TensorShape(shape), dtype, initial.name + ":0", trained))
    with tf.init_scope():  # outside of branches of tf.cond, as tf.get_variable does
        tf.import_graph_def(definition, name="")
        return _registered(made)


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
        made.append(_add_variable(definition, variable.op.name + suffix, variable.shape, _type(variable), initial.name,
                                  trained=False, device=variable.device))
    tf.import_graph_def(definition, {initial.name: initial for initial in initial_values}, name="")
    return _registered(made)


def _add_variable(definition, name, shape, dtype, initial_name, trained, device=""):
    """Adds the operations of a variable; returns its VariableDef. `initial_name`: of the tensor that it begins with."""
    for op, suffix, inputs, attributes in (
            ("VarHandleOp", "", [], dict(shape=tf.AttrValue(shape=shape.as_proto()),
                                         shared_name=tf.AttrValue(s=name.encode()))),
            ("AssignVariableOp", "/Assign", [name, initial_name], {}),
            ("ReadVariableOp", "/Read/ReadVariableOp", [name], {})):
        definition.node.add(op=op, name=name + suffix, device=device, input=inputs, attr=dict(attributes, dtype=dtype))
    return variable_pb2.VariableDef(
        variable_name=name + ":0", initial_value_name=initial_name, initializer_name=name + "/Assign",
        snapshot_name=name + "/Read/ReadVariableOp:0", is_resource=True, trainable=trained)


def _registered(definitions):
    """The variables of some VariableDefs, added to the graph's collections of variables."""
    made = [ResourceVariable(variable_def=each) for each in definitions]
    for definition, variable in zip(definitions, made):
        tf.add_to_collection(tf.GraphKeys.GLOBAL_VARIABLES, variable)
        if definition.trainable:
            tf.add_to_collection(tf.GraphKeys.TRAINABLE_VARIABLES, variable)
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
    return _imported(definition, outside, [variable.op.name + "/move" for variable in variables], "move")


def update(operation, variables, inputs, **attributes):
    """Updates each variable by an operation of its own, such as that of an optimizer.

    Args:
        operation: its type, one of https://www.tensorflow.org/api_docs/python/tf/raw_ops.
        variables: resource variables of the default graph, of the type of the update.
        inputs: for each variable, the tensors that its operation takes, in the order of that page.
        attributes: what the operation has beside T, {name: AttrValue}.
    Returns:
        a list of operations.
    """
    definition = _empty_definition()
    for variable, its_inputs in zip(variables, inputs):
        _add_node(definition, variable, operation, variable.op.name, [x.name for x in its_inputs],
                  T=_type(variable), **attributes)
    outside = {x.name: x for its_inputs in inputs for x in its_inputs}
    return _imported(definition, outside, [variable.op.name for variable in variables], "update")


def saver_of(variables, **options):
    """`tf.train.Saver` of some variables, made in a fraction of the time. It deletes no checkpoint.

    Args:
        variables: {name in the checkpoint: variable of the default graph}.
        options: see `tf.train.Saver`.
    """
    prefix = tf.placeholder_with_default("model", [], "save/prefix")
    definition, outside = _empty_definition(), {prefix.name: prefix}
    names, values, assigned = sorted(variables), [], []
    for index, name in enumerate(names):
        variable = variables[name]
        if isinstance(variable, ResourceVariable):
            place, kind, read, assign = variable.handle, "dtype", "ReadVariableOp", "AssignVariableOp"
        else:  # as TensorFlow 1 makes some
            place, kind, read, assign = variable.op.outputs[0], "T", "Identity", "Assign"
        outside[place.name] = place
        values.append("value_%d" % index)
        assigned.append("assign_%d" % index)
        kind = {kind: _type(variable)}
        _add_node(definition, variable, read, values[-1], [place.name], **kind)
        _add_node(definition, variable, assign, assigned[-1], [place.name, "restored:%d" % index], **kind)
    text = tf.AttrValue(type=tf.string.as_datatype_enum)
    for constant, texts in (("names", names), ("slices", [""] * len(names))):
        definition.node.add(op="Const", name=constant, attr=dict(
            dtype=text, value=tf.AttrValue(tensor=tf.make_tensor_proto(texts, tf.string))))
    described = [prefix.name, "names", "slices"]
    types = tf.AttrValue(list=tf.AttrValue.ListValue(type=[_type(variables[name]).type for name in names]))
    definition.node.add(op="SaveV2", name="save", input=described + values, attr=dict(dtypes=types))
    definition.node.add(op="Identity", name="saved", input=[prefix.name, "^save"], attr=dict(T=text))
    definition.node.add(op="RestoreV2", name="restored", input=described, attr=dict(dtypes=types), device="/cpu:0")
    definition.node.add(op="NoOp", name="restore", input=["^" + name for name in assigned])
    saved, restored = _imported(definition, outside, ["saved:0", "restore"], "save")
    return tf.train.Saver(saver_def=saver_pb2.SaverDef(
        filename_tensor_name=prefix.name, save_tensor_name=saved.name, restore_op_name=restored.name,
        version=saver_pb2.SaverDef.V2), **options)


def _imported(definition, outside, results, name):
    """Adds a GraphDef to the default graph, in a new name scope; returns some of its operations and tensors.

    Args:
        definition: the GraphDef.
        outside: {name in the definition: tensor of the default graph, or of one around it}.
        results: the names of what is returned.
        name: that of the scope.
    """
    graph = tf.get_default_graph()
    if hasattr(graph, "capture"):  # a branch of tf.cond, such as that of float16's loss scaling, is a graph of its own
        outside = {name: graph.capture(tensor) for name, tensor in outside.items()}
    return tf.import_graph_def(definition, outside, results, name=name)


def _empty_definition():
    # The graph gets the lowest of all versions that are imported, and without this it would be 0.
    return tf.GraphDef(versions=tf.get_default_graph().graph_def_versions)


def _type(x):
    return tf.AttrValue(type=x.dtype.base_dtype.as_datatype_enum)


def _add_node(definition, variable, op, name, inputs, **attributes):
    """Adds an operation on the device of a variable."""
    definition.node.add(op=op, name=name, device=variable.device, input=inputs, attr=attributes)
