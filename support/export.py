"""How is a trained network exported as a SavedModel and a frozen graph, which need only TensorFlow?"""

import collections
import json
import os
import shutil

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

from support import UserError


def export_graph(sess, inputs, outputs, path, about):
    """Writes the session's graph with its variables converted to constants.

    Args:
        sess: the session.
        inputs, outputs: {name in the signature `serving_default`: tensor}.
        path: the SavedModel is written to the folder `<path>/`, the frozen graph to the file `<path>.pb`. The tensors
            of the frozen graph keep their names.
        about: {name: value}, what a caller must know of the network; written to `<path>/model.json`.
    Returns:
        (path of the SavedModel, path of the frozen graph).
    Raises:
        UserError: one of the two paths exists already or cannot be written.
    """
    frozen = path + ".pb"
    for there in (path, frozen):
        if os.path.exists(there):
            raise UserError("%s is there already, an export of the same checkpoint: move it away to make it anew"
                            % there)
    named = {name: tensor.op.name for name, tensor in dict(inputs, **outputs).items()}
    kept = [tensor.op.name for tensor in outputs.values()]
    graph_def = folded(tf.graph_util.convert_variables_to_constants(sess, sess.graph.as_graph_def(), kept), kept)
    new = path + ".new"
    try:
        shutil.rmtree(new, ignore_errors=True)  # left over by a killed process
        with tf.Graph().as_default() as graph, tf.Session() as frozen_sess:
            tf.import_graph_def(graph_def, name="")
            infos = {name: tf.saved_model.utils.build_tensor_info(graph.get_tensor_by_name(op + ":0"))
                     for name, op in named.items()}
            builder = tf.saved_model.builder.SavedModelBuilder(new)
            builder.add_meta_graph_and_variables(
                frozen_sess, [tf.saved_model.tag_constants.SERVING],
                {tf.saved_model.signature_constants.DEFAULT_SERVING_SIGNATURE_DEF_KEY:
                    tf.saved_model.signature_def_utils.build_signature_def(
                        {name: infos[name] for name in inputs}, {name: infos[name] for name in outputs},
                        tf.saved_model.signature_constants.PREDICT_METHOD_NAME)},
                strip_default_attrs=True)  # attributes with default values, which older versions may not know
            with open(builder.save(), "rb") as file:
                stripped = SavedModel.FromString(file.read()).meta_graphs[0].graph_def
        with open(os.path.join(new, "model.json"), "w") as file:
            json.dump(about, file, indent=2, sort_keys=True)
        with open(frozen + ".new", "wb") as file:
            file.write(stripped.SerializeToString())
        os.replace(frozen + ".new", frozen)
        os.replace(new, path)
    except (OSError, tf.errors.OpError) as error:
        raise UserError("cannot write %s (%s): make room there" % (
            path, getattr(error, "strerror", None) or getattr(error, "message", str(error)))) from None
    return path, frozen


def folded(graph_def, outputs):
    """Folds each batch normalization that follows a convolution or matrix product into scaled weights and an offset.

    A batch normalization of a concatenation is not folded: each layer of a dense block normalizes the same feature
    maps with its own scale and offset.

    Args:
        graph_def: an inference graph without variables. It is modified.
        outputs: names of the output nodes.
    Returns:
        a GraphDef with the output nodes and the nodes that they depend on.
    """
    nodes = {node.name: node for node in graph_def.node}
    used = collections.Counter(_source(name) for node in graph_def.node for name in node.input)

    def is_constant(name):
        node = nodes[_source(name)]
        return node.op == "Const" or (node.op != "Placeholder" and bool(node.input) and all(map(is_constant,
                                                                                               node.input)))

    def product_before(norm):
        """Returns the Conv2D or MatMul node before a batch normalization, or None.

        The node must have constant weights, and the batch normalization must be the only user of its output.
        """
        node = nodes[_source(norm.input[0])]
        while node.op in ("Identity", "Reshape") and used[node.name] == 1:
            node = nodes[_source(node.input[0])]
        if node.op in ("Conv2D", "MatMul") and used[node.name] == 1 and is_constant(node.input[1]):
            return node
        return None

    with tf.Graph().as_default(), tf.Session() as sess:
        tf.import_graph_def(graph_def, name="")
        for norm in [node for node in graph_def.node if node.op.startswith("FusedBatchNorm")]:
            product = product_before(norm)
            if product is None:
                continue
            names = [product.input[1]] + list(norm.input[1:5])
            weights, gamma, beta, mean, variance = (value.astype(np.float64) for value in sess.run(
                [name if ":" in name else name + ":0" for name in names]))
            scale = gamma / np.sqrt(variance + norm.attr["epsilon"].f)
            product.input[1] = _constant(graph_def, norm.name + "/weights", weights * scale)
            offset = _constant(graph_def, norm.name + "/offset", beta - mean * scale)
            x = norm.input[0]
            name = norm.name
            norm.Clear()
            norm.name, norm.op = name, "BiasAdd"
            norm.input.extend([x, offset])
            norm.attr["T"].type = tf.float32.as_datatype_enum
    return tf.graph_util.extract_sub_graph(graph_def, outputs)


def _source(name):
    """Returns the name of the node that a node's input comes from."""
    return name.lstrip("^").split(":")[0]


def _constant(graph_def, name, value):
    """Adds a float32 constant to the graph; returns its name."""
    node = graph_def.node.add(name=name, op="Const")
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value.astype(np.float32)))
    return name
