"""Which form does an exported graph have, so that other tools compute the same, and fast?

Densenet.py builds graphs for training on a CPU. Other tools read graphs by pattern, and some patterns lead them astray:

- TensorFlow's `optimize_for_inference` and TensorFlow.js fold a batch normalization into the convolution before it
  even where a concatenation reads the convolution, too. There, the normalization is written as a product and a sum.
- A 1x1 convolution as a matrix product is slow in OpenVINO and ONNX Runtime, and its reshaping merges the pixels of
  several smaller images into one. It is written as a convolution.
- Some readers take weights from constants only, not from operations on constants.
- A loaded signature does not look at the shape of images. A network of convolutions takes any, with wrong answers.
"""

import collections

import numpy as np
import tensorflow.compat.v1 as tf


def rewritten(graph_def, outputs):
    """Returns an inference graph that computes the same in a form for other tools; see above.

    - A batch normalization by a depthwise convolution, a form of this project, becomes a FusedBatchNormV3 and a Relu.
    - Operations without effect are left out: Identity, Split by one, division by one.
    - What depends on constants alone is a constant.
    - A 1x1 convolution is a Conv2D.
    - A batch normalization of a convolution that nothing else reads is folded into its weights and an offset. If
      something else reads the convolution, it is a Mul and an AddV2. One of a concatenation stays: each layer of a
      dense block normalizes the same feature maps with its own scale and offset.
    - Mirror images are gathered, as OpenCV has no ReverseV2, and views are added one by one: TFLite has no AddN of
      whole numbers.
    - Images of another shape than the placeholder's are refused wherever the graph is run: see `_with_checked_shape`.

    Args:
        graph_def: a GraphDef without variables. It is not changed.
        outputs: the names of the output nodes, which keep their names.
    Returns:
        a GraphDef with the output nodes and the nodes that they depend on, in an order of computation, without
        attributes that have their default values, which older versions of TensorFlow may not know.
    """
    graph_def = tf.graph_util.extract_sub_graph(graph_def, outputs)
    for step in (_with_plain_normalizations, _without_idle_nodes, _with_constants, _without_idle_nodes,
                 _with_convolutions, _with_normalizations, _with_gathered_mirrors, _with_sums_of_two,
                 _with_checked_shape):
        graph_def = tf.graph_util.extract_sub_graph(step(graph_def, outputs), outputs)
    with tf.Graph().as_default() as graph:
        import_copy(graph_def)
        attributes = {operation.type: operation.op_def.attr for operation in graph.get_operations()}
        graph_def = graph.as_graph_def()
    for node in graph_def.node:
        for attribute in attributes[node.op]:
            if attribute.HasField("default_value") and node.attr[attribute.name] == attribute.default_value:
                del node.attr[attribute.name]
    return graph_def


def _with_plain_normalizations(graph_def, _):
    """Replaces each depthwise convolution by kernels of one pixel, a private operation of TensorFlow.

    It becomes a FusedBatchNormV3, and a Relu if it rectifies.
    """
    nodes = {node.name: node for node in graph_def.node}
    for node in [node for node in nodes.values() if node.op == "_FusedDepthwiseConv2dNative"]:
        x, kernel, offset = node.input
        scale, shape = nodes[_source(kernel)].input
        # The mean is 0, and variance + epsilon is 1.
        moments = [_constant(graph_def, "%s/%s" % (node.name, name), np.full(_value(nodes[_source(shape)])[2], value))
                   for name, value in (("mean", 0.0), ("variance", 0.5))]
        norm = node
        if b"Relu" in node.attr["fused_ops"].list.s:
            norm = graph_def.node.add(name=node.name + "/normalized")
            _become(node, "Relu", [norm.name])
        _become(norm, "FusedBatchNormV3", [x, scale, offset] + moments)
        norm.attr["U"].type, norm.attr["epsilon"].f = tf.float32.as_datatype_enum, 0.5
        norm.attr["is_training"].b = False
    return graph_def


def _without_idle_nodes(graph_def, outputs):
    """Leaves out the nodes that return their input; outputs stay."""
    nodes = {node.name: node for node in graph_def.node}
    instead = {}
    for node in graph_def.node:
        if node.name in outputs:
            continue
        if node.op == "Identity":
            instead[node.name] = node.input[0]
        elif node.op == "Split" and node.attr["num_split"].i == 1:
            instead[node.name] = node.input[1]
        elif node.op == "RealDiv" and nodes[_source(node.input[1])].op == "Const":
            if (_value(nodes[_source(node.input[1])]) == 1).all():
                instead[node.name] = node.input[0]
    for node in graph_def.node:
        for place, name in enumerate(node.input):
            while _source(name) in instead and not name.startswith("^"):
                name = instead[_source(name)]
            node.input[place] = name
    return graph_def


def _with_constants(graph_def, _):
    """Replaces each node that depends on constants alone by its value."""
    nodes, known = {node.name: node for node in graph_def.node}, {}

    def is_constant(name):
        node = nodes[_source(name)]
        if node.name not in known:
            known[node.name] = node.op == "Const" or (
                node.op != "Placeholder" and bool(node.input) and all(map(is_constant, node.input)))
        return known[node.name]

    read = {name for node in graph_def.node if not is_constant(node.name) for name in node.input
            if is_constant(name) and nodes[_source(name)].op != "Const"}
    names = sorted(read)
    with tf.Graph().as_default(), tf.Session(config=on_cpu()) as sess:
        import_copy(graph_def)
        values = sess.run([name if ":" in name else name + ":0" for name in names])
    constants = {name: _constant(graph_def, name.replace(":", "/output_") + "/value", value)
                 for name, value in zip(names, values)}
    for node in graph_def.node:
        node.input[:] = [constants.get(name, name) for name in node.input]
    return graph_def


def _with_convolutions(graph_def, _):
    """Replaces Reshape to [-1, C], MatMul by [C, F], Reshape to [-1, H, W, F] of an [N, H, W, C] by a Conv2D."""
    nodes = {node.name: node for node in graph_def.node}
    shapes = _shapes(graph_def)
    for last in graph_def.node:
        product = nodes[_source(last.input[0])] if last.op == "Reshape" else None
        if product is None or product.op != "MatMul" or nodes[_source(product.input[1])].op != "Const":
            continue
        first = nodes[_source(product.input[0])]
        before, after = shapes.get(first.input[0] if first.op == "Reshape" else None), shapes[last.name]
        if not before or len(before) != 4 or len(after) != 4 or before[1:3] != after[1:3]:
            continue
        weights = _value(nodes[_source(product.input[1])])
        constant = _constant(graph_def, product.name + "/kernel", weights[None, None])
        _become(last, "Conv2D", [first.input[0], constant], padding=b"VALID", strides=[1, 1, 1, 1])
    return graph_def


def _with_sums_of_two(graph_def, _):
    """Replaces each AddN by AddV2s, as TFLite has no AddN of whole numbers."""
    for node in [node for node in graph_def.node if node.op == "AddN"]:
        total, *terms = node.input
        for place, term in enumerate(terms[:-1]):
            partial = graph_def.node.add(name="%s/sum_%d" % (node.name, place))
            _become(partial, "AddV2", [total, term])
            total = partial.name
        _become(node, "AddV2", [total, terms[-1]])
    return graph_def


def _with_checked_shape(graph_def, _):
    """Lets the normalization of the images refuse other shapes, as not all that run a graph look at the placeholder's.

    The mean is subtracted by a BiasAdd, which refuses another number of channels. The deviation is a constant with as
    many values as an image: dividing by it refuses other sides, but for one pixel, which it repeats. EnsureShape, which
    would refuse that, too, is unknown to TensorFlow.js and OpenCV.
    """
    nodes, shapes = {node.name: node for node in graph_def.node}, _shapes(graph_def)
    for quotient in [node for node in graph_def.node if node.op == "RealDiv"]:
        difference, deviation = (nodes[_source(name)] for name in quotient.input)
        if difference.op != "Sub" or deviation.op != "Const" or nodes[_source(difference.input[0])].op != "Cast":
            continue
        mean = nodes[_source(difference.input[1])]
        offset = _constant(graph_def, difference.name + "/offset", -_value(mean))
        whole = np.broadcast_to(_value(deviation), shapes[quotient.name][1:])
        quotient.input[1] = _constant(graph_def, quotient.name + "/deviation", whole)
        _become(difference, "BiasAdd", [difference.input[0], offset])
    return graph_def


def _with_gathered_mirrors(graph_def, _):
    """Replaces a ReverseV2 along one axis by a GatherV2, which more tools know."""
    nodes, shapes = {node.name: node for node in graph_def.node}, _shapes(graph_def)
    for node in [node for node in graph_def.node if node.op == "ReverseV2"]:
        axes = _value(nodes[_source(node.input[1])]).ravel().tolist()
        size = shapes[node.name][axes[0]] if len(axes) == 1 else None
        if size is not None:
            indices = _constant(graph_def, node.name + "/indices", np.arange(size, dtype=np.int32)[::-1])
            axis = _constant(graph_def, node.name + "/along", np.int32(axes[0]))
            x, kind = node.input[0], node.attr["T"].type
            _become(node, "GatherV2", [x, indices, axis])
            node.attr.clear()
            for name, value in (("Tparams", kind), ("Tindices", tf.int32.as_datatype_enum),
                                ("Taxis", tf.int32.as_datatype_enum)):
                node.attr[name].type = value
    return graph_def


def _with_normalizations(graph_def, outputs):
    """Folds batch normalizations into convolutions, or writes them as a product and a sum; see `rewritten`."""
    nodes = {node.name: node for node in graph_def.node}
    readers = collections.Counter(_source(name) for node in graph_def.node for name in node.input)
    readers.update(outputs)
    for norm in [node for node in graph_def.node if node.op.startswith("FusedBatchNorm")]:
        product = nodes[_source(norm.input[0])]
        if product.op != "Conv2D" or any(nodes[_source(name)].op != "Const" for name in
                                         [product.input[1]] + list(norm.input[1:5])):
            continue
        scale, offset = _scale_and_offset(norm, nodes)
        offset = _constant(graph_def, norm.name + "/offset", offset)
        x = norm.input[0]
        if readers[product.name] == 1:
            weights = _value(nodes[_source(product.input[1])]).astype(np.float64)
            product.input[1] = _constant(graph_def, norm.name + "/weights", weights * scale)
            _become(norm, "BiasAdd", [x, offset])
        else:
            scaled = graph_def.node.add(name=norm.name + "/scaled")
            _become(scaled, "Mul", [x, _constant(graph_def, norm.name + "/scale", scale)])
            _become(norm, "AddV2", [scaled.name, offset])
    return graph_def


def _scale_and_offset(norm, nodes):
    """(scale, offset) of each channel, float64 [C], by which a FusedBatchNorm with constant inputs computes."""
    gamma, beta, mean, variance = (_value(nodes[_source(name)]).astype(np.float64) for name in norm.input[1:5])
    scale = gamma / np.sqrt(variance + norm.attr["epsilon"].f)
    return scale, beta - mean * scale


def _shapes(graph_def):
    """The shapes of each node's first output, {name: list with None for what is unknown}; without those unknown."""
    with tf.Graph().as_default() as graph:
        import_copy(graph_def)
        found = {operation.name: operation.outputs[0].shape for operation in graph.get_operations()
                 if operation.outputs}
    return {name: shape.as_list() for name, shape in found.items() if shape.ndims is not None}


def import_copy(graph_def, input_map=None, return_elements=None, name=""):
    """As `tf.import_graph_def`, which writes default attributes into the GraphDef that it gets."""
    copy = tf.GraphDef()
    copy.CopyFrom(graph_def)
    return tf.import_graph_def(copy, input_map, return_elements, name)


def _source(name):
    """Returns the name of the node that a node's input comes from."""
    return name.lstrip("^").split(":")[0]


def _value(node):
    """The value of a Const node."""
    return tf.make_ndarray(node.attr["value"].tensor)


def _constant(graph_def, name, value):
    """Adds a constant to the graph, floating-point numbers as float32; returns its name."""
    value = np.asarray(value)
    value = value.astype(np.float32) if value.dtype == np.float64 else value
    node = graph_def.node.add(name=name, op="Const")
    node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return name


def _become(node, operation, inputs, **attributes):
    """Makes a node another operation on float32, under its own name."""
    name = node.name
    node.Clear()
    node.name, node.op = name, operation
    node.input.extend(inputs)
    node.attr["T"].type = tf.float32.as_datatype_enum
    for key, value in attributes.items():
        if isinstance(value, bytes):
            node.attr[key].s = value
        else:
            node.attr[key].list.i.extend(value)


def on_cpu():
    """A session's configuration without GPUs, whose float32 products may have fewer bits."""
    return tf.ConfigProto(device_count={"GPU": 0})
