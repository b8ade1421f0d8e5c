"""Class activation maps and feature reuse, against NumPy and against weights that were set by hand."""

import types

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import Densenet
from support.augmentation import training_batches
from support.data import Split, data_set
from support.evaluation import evaluate_split, views_of
from support.explanations import class_maps, classifier_kernel, feature_reuse, kernels_of, mean_over_views


def found_maps(features, kernel, classes):
    with tf.Graph().as_default(), tf.Session() as sess:
        return sess.run(class_maps(tf.constant(features), tf.constant(kernel), tf.constant(classes)))


@pytest.mark.parametrize("shape", [(5, 3, 2, 7), (4, 1, 1, 3)])
def test_a_map_is_the_features_weighted_by_the_kernel_of_its_class(shape):
    random = np.random.RandomState(0)
    features, kernel = random.rand(*shape).astype(np.float32), random.randn(shape[3], 11).astype(np.float32)
    classes = random.randint(0, 11, shape[0])
    expected = np.einsum("nhwc,cn->nhw", features.astype(np.float64), kernel.astype(np.float64)[:, classes])
    assert (expected < 0).any()
    np.testing.assert_allclose(found_maps(features, kernel, classes), expected, rtol=1e-5, atol=1e-6)


def test_features_in_bfloat16_give_maps_in_float32():
    with tf.Graph().as_default(), tf.Session() as sess:
        features = tf.cast(tf.constant([[[[1.5, 2.0]]]]), tf.bfloat16)
        maps = class_maps(features, tf.constant([[1.0001, 0.0], [0.5, 1.0]]), tf.constant([0], tf.int64))
        assert maps.dtype == tf.float32
        np.testing.assert_allclose(sess.run(maps), [[[2.50015]]], rtol=1e-6)


def test_of_a_thousand_classes_only_the_asked_ones_are_computed():
    with tf.Graph().as_default() as graph:
        maps = class_maps(tf.placeholder(tf.float32, [2, 7, 7, 8]), tf.zeros([8, 1000]), tf.zeros([2], tf.int64))
        assert maps.shape.as_list()[1:] == [7, 7]
        sizes = [output.shape.num_elements() or 0 for operation in graph.get_operations()
                 for output in operation.outputs]
    assert max(sizes) <= 8 * 1000  # the kernel itself


@pytest.mark.parametrize("flip, shift", [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_the_mean_of_a_map_and_the_bias_are_the_logit_that_a_test_reports(flip, shift):
    """A network of one convolution; its logits are means over the views, in float64."""
    random = np.random.RandomState(1)
    images, filters = random.rand(3, 6, 6, 2), random.randn(3, 3, 2, 5)
    kernel, bias = random.randn(5, 4), random.randn(4)
    with tf.Graph().as_default(), tf.Session() as sess:
        views = views_of(tf.constant(images), flip, shift)
        features = tf.nn.relu(tf.nn.conv2d(tf.concat(views, 0), tf.constant(filters), 1, "SAME"))
        logits = tf.reduce_mean(features, [1, 2]) @ tf.constant(kernel) + bias
        logits, features = sess.run([tf.add_n(tf.split(logits, len(views))) / len(views),
                                     mean_over_views(features, len(views), flip)])
        first = sess.run(tf.nn.relu(tf.nn.conv2d(tf.constant(images), tf.constant(filters), 1, "SAME")))
    for one in range(4):
        maps = found_maps(features, kernel.astype(np.float32), np.full(3, one))
        np.testing.assert_allclose(maps.mean((1, 2)) + bias[one], logits[:, one], rtol=1e-4, atol=1e-5)
    if not (flip or shift):
        np.testing.assert_allclose(features, first, rtol=1e-5)


def test_mirrored_views_are_mirrored_back():
    """What a view shows at its left edge was at the right edge of the image."""
    features = np.zeros([4, 1, 3, 1], np.float32)  # two images, each seen unchanged and mirrored
    features[0, 0, 0], features[2, 0, 2] = 1, 3
    features[1, 0, 1], features[3, 0, 0] = 5, 7
    with tf.Graph().as_default(), tf.Session() as sess:
        mean = sess.run(mean_over_views(tf.constant(features), 2, True))
    np.testing.assert_array_equal(mean[..., 0], [[[2, 0, 0]], [[0, 2.5, 3.5]]])


def block(name, rows, layers, conv, growth_k, inputs, out, height):
    """Kernels of a dense block whose absolute weights are `rows[source][layer]`, of alternating sign."""
    weights = {}
    for layer in range(layers):
        of_maps = [rows[0][layer]] * inputs + [rows[1 + source][layer] for source in range(layer)
                                               for _ in range(growth_k)]
        kernel = np.tile(np.array(of_maps, np.float32)[:, None], (height, height, 1, out))
        kernel[..., ::2] *= -1
        weights["%s/bottleN_%d/%s/kernel" % (name, layer, conv)] = kernel
    return weights


def test_feature_reuse_of_weights_set_by_hand():
    """Two blocks with bottlenecks, k = 2: a block input of 3 maps, and one of 4 after the transition."""
    none = None
    first = [[0.1, 0.2, 0.3], [none, 0.4, 0.5], [none, none, 0.6]]
    final = [[1.0, 0.0], [none, 2.0]]
    weights = block("dense_0", first, 2, "conv1", 2, 3, 8, 1)
    weights.update(block("dense_final", final, 1, "conv1", 2, 4, 8, 1))
    weights["dense_0/bottleN_0/conv2/kernel"] = np.full([3, 3, 8, 2], 9.0)  # reads the bottleneck alone
    weights["trans_0/conv1/kernel"] = np.repeat([0.3, -0.5, 0.6], [3, 2, 2])[None, None, :, None].repeat(4, 3)
    weights["linear/kernel"] = np.repeat([0.0, -2.0], [4, 2])[:, None].repeat(10, 1)
    found = feature_reuse(weights, (2, 1), 2, True)
    assert list(found) == ["dense_0", "dense_final"]
    np.testing.assert_allclose(found["dense_0"], np.array(first, float), rtol=1e-6)
    np.testing.assert_allclose(found["dense_final"], np.array(final, float), rtol=1e-6)


def test_feature_reuse_is_a_mean_over_places_maps_and_filters():
    """A plain layer of one block: its first 3x3 convolution reads the block's input of 3 maps directly."""
    random = np.random.RandomState(2)
    weights = {"dense_final/bottleN_0/conv2/kernel": random.randn(3, 3, 3, 2),
               "dense_final/bottleN_1/conv2/kernel": random.randn(3, 3, 5, 2), "linear/kernel": random.randn(7, 10)}
    found = feature_reuse(weights, (2,), 2, False)["dense_final"]
    second, last = weights["dense_final/bottleN_1/conv2/kernel"], weights["linear/kernel"]
    assert found[0, 0] == pytest.approx(np.abs(weights["dense_final/bottleN_0/conv2/kernel"]).mean())
    assert found[0, 1] == pytest.approx(np.abs(second[:, :, :3]).mean())
    assert found[1, 1] == pytest.approx(np.abs(second[:, :, 3:]).mean())
    assert found[:, 2].tolist() == pytest.approx([np.abs(last[part]).mean() for part in (
        slice(0, 3), slice(3, 5), slice(5, 7))])
    assert np.isnan(found[[1, 2, 2], [0, 0, 1]]).all()


@pytest.mark.parametrize("changes", [{}, {"bottleneck": False, "transition_pooling": "max", "blocks": (1, 2, 1)},
                                     {"blocks": (2,), "compression": 1.0}])
def test_feature_reuse_of_a_networks_initial_weights(changes):
    """They are normal with variance 2 / fan_in; the mean absolute value is sqrt(2 / π) of the deviation."""
    config = Densenet.choose(**dict(dict(blocks=(2, 1), growth_k=8, bottleneck=True), **changes))
    with tf.Graph().as_default(), tf.Session() as sess:
        tf.set_random_seed(0)
        Densenet.network_of(tf.zeros([1, 28, 28, 1]), config, 10, training=False)
        sess.run(tf.global_variables_initializer())
        weights = kernels_of(sess)
        np.testing.assert_array_equal(sess.run(classifier_kernel()), weights["linear/kernel"])
    for scope, means in feature_reuse(weights, config.blocks, config.growth_k, config.bottleneck).items():
        for column in range(len(means)):
            reader = "%s/bottleN_%d/conv%d" % (scope, column, 1 if config.bottleneck else 2)
            if column == len(means) - 1:
                reader = "linear" if scope == "dense_final" else scope.replace("dense", "trans") + "/conv1"
            fan_in = np.prod(weights[reader + "/kernel"].shape[:-1])
            expected = np.sqrt(2 / np.pi) * np.sqrt(2 / fan_in)
            np.testing.assert_allclose(means[:column + 1, column], expected, rtol=0.3)


def shapes_in_quarters(count, random):
    """Dark noise with a bright square, cross or frame in one quarter: (uint8 [N, 32, 32, 1], class, quarter)."""
    images = random.randint(0, 60, [count, 32, 32, 1]).astype(np.uint8)
    labels, quarters = random.randint(0, 3, count), random.randint(0, 4, count)
    shapes = np.zeros([3, 9, 9], bool)
    shapes[0] = True
    shapes[1, 3:6] = shapes[1, :, 3:6] = True
    shapes[2] = True
    shapes[2, 2:7, 2:7] = False
    for image, label, quarter in zip(images, labels, quarters):
        top, left = np.array(divmod(quarter, 2)) * 16 + random.randint(2, 6, 2)
        image[top:top + 9, left:left + 9][shapes[label]] = 230
    return images, labels, quarters


@pytest.mark.once
@pytest.mark.parametrize("flip_average", [False, True])
def test_a_maps_maximum_lies_where_the_object_is(flip_average):
    """The object is in one quarter of the picture; a tiny network is trained on such pictures."""
    random = np.random.RandomState(3)
    images, labels, _ = shapes_in_quarters(1200, random)
    test_images, test_labels, quarters = shapes_in_quarters(300, random)
    names = ("square", "cross", "frame")
    data = data_set("toy", Split(images, labels), Split(test_images, test_labels), names, 0)
    config = Densenet.choose(blocks=(2, 2), growth_k=8, bottleneck=False, stem="3x3s2", batch_size=50, rotation=0.0,
                             shift=2, flip_average=flip_average, devices=1)
    with tf.Graph().as_default(), tf.Session() as sess:
        net = Densenet.build_graph(data, config)
        sess.run(net.initialize)
        for epoch in range(5):
            for batch, answers in training_batches(data, config, epoch, 0):
                sess.run(net.train, {net.images: batch, net.labels: answers, net.rate: 0.01})
        evaluation = evaluate_split(sess, net.test, data.test, data)
        maps = []
        for start in range(0, 300, 50):
            normalized = ((test_images[start:start + 50] - data.mean) / data.deviation).astype(np.float32)
            maps.append(sess.run(net.test.maps, {net.images: normalized, net.labels: test_labels[start:start + 50]}))
    maps = np.concatenate(maps)
    right = evaluation.predicted == test_labels
    assert right.mean() > 0.9 and maps.shape == (300, 8, 8)
    rows, columns = np.unravel_index(maps.reshape(300, -1).argmax(1), maps.shape[1:])
    inside = (rows // 4 == quarters // 2) & (columns // 4 == quarters % 2)
    assert inside[right].mean() >= 0.95


def test_an_evaluation_has_the_maps_of_its_mistakes_and_the_embedding(tiny_mnist):
    """What they must be is computed from the features of a second run of the network, image by image."""
    config = Densenet.choose(data_dir=tiny_mnist, blocks=(1, 1), growth_k=4, stem="3x3s2", batch_size=7,
                             validation_size=30, flip_average=True, devices=1)
    data, _ = Densenet.prepare_data(config)
    with tf.Graph().as_default(), tf.Session() as sess:
        net = Densenet.build_graph(data, config)
        sess.run(net.initialize)
        evaluation = evaluate_split(sess, net.test, data.test, data, embed=True)
        assert evaluate_split(sess, net.test, data.test, data).embedding is None
        one = tf.placeholder(tf.float32, [1, 28, 28, 1])
        with tf.variable_scope("", reuse=True):
            plain = Densenet.network_of(one, types.SimpleNamespace(**dict(vars(config), flip_average=False)), 10, False)
        normalized = ((data.test.images - data.mean) / data.deviation).astype(np.float32)
        features = [[sess.run(plain.features, {one: view})[0].astype(np.float64) for view in (
            normalized[index:index + 1], normalized[index:index + 1, :, ::-1])] for index in range(len(data.test))]
        kernel = kernels_of(sess)["linear/kernel"].astype(np.float64)
    means = np.array([(straight + mirrored[:, ::-1]) / 2 for straight, mirrored in features])
    rows, vectors = evaluation.embedding
    assert rows.tolist() == list(range(45)) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, means.mean((1, 2)), rtol=1e-4, atol=1e-5)
    assert len(evaluation.maps) == len(evaluation.mistakes) == 12
    for found, (index, _, predicted, _) in zip(evaluation.maps, evaluation.mistakes):
        np.testing.assert_allclose(found, means[index] @ kernel[:, predicted], rtol=1e-3, atol=1e-4)
