"""Parameters and multiply-adds of the named networks, compared with the paper and torchvision's documentation."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import Densenet
from support import UserError
from support.networks import NETWORKS, STEMS, extent_of_maps, final_side, multiply_adds


def parameters(network, image_shape, class_num):
    """The size of the trained variables that a network asks for, which are not created: that takes most of the time."""
    chosen = {name: value for name, value in NETWORKS[network].items() if name not in ("image_size", "crop_area")}
    sizes = {}

    def constant_of(name, shape, trainable=True, **_):
        assert name not in sizes
        sizes[name] = int(np.prod(shape)) if trainable else 0
        return tf.zeros(shape)

    with tf.Graph().as_default(), tf.variable_scope("", custom_getter=constant_of):
        Densenet.DenseNet(tf.zeros((1,) + image_shape), training=False, class_num=class_num, **chosen)
    return sum(sizes.values())


@pytest.mark.parametrize("network,image_shape,class_num,expected", [
    ("densenet_40_12", (32, 32, 3), 10, 1019722),
    pytest.param("densenet_bc_100_12", (32, 32, 3), 10, 769162, marks=pytest.mark.once),
    pytest.param("densenet_bc_250_24", (32, 32, 3), 10, 15324406, marks=pytest.mark.once),
    pytest.param("densenet_bc_190_40", (32, 32, 3), 10, 25624430, marks=pytest.mark.once),
    ("densenet_121", (224, 224, 3), 1000, 7978856),
    pytest.param("densenet_169", (224, 224, 3), 1000, 14149480, marks=pytest.mark.once),
    pytest.param("densenet_201", (224, 224, 3), 1000, 20013928, marks=pytest.mark.once),
    pytest.param("densenet_161", (224, 224, 3), 1000, 28681000, marks=pytest.mark.once),
    pytest.param("densenet_full_cifar", (32, 32, 3), 10, 10236298, marks=pytest.mark.once),
    ("densenet_mnist_first", (28, 28, 1), 10, 607930),
])
def test_parameter_counts(network, image_shape, class_num, expected):
    assert parameters(network, image_shape, class_num) == expected


@pytest.mark.parametrize("network, giga", [
    ("densenet_121", 2.83), ("densenet_161", 7.73), ("densenet_169", 3.36), ("densenet_201", 4.29)])
def test_multiply_adds_match_torchvisions_documentation(network, giga):
    counted = multiply_adds(Densenet.choose(network=network), (224, 224, 3), 1000)
    assert round(counted / 1e9, 2) == giga


def test_multiply_adds_match_a_manual_count():
    # 3×3 stem, plain layers; pooling from 7×7 to 3×3 to 1×1; 2 input channels, k = 3, transition to ⌊0.5 · 9⌋ = 4.
    config = Densenet.choose(network="densenet_mnist", blocks="1,1", growth_k=3)
    assert multiply_adds(config, (7, 7, 2), 5) == (
        49 * 9 * 2 * 6 + 9 * 9 * 6 * 3 + 9 * 9 * 4 + 9 * 4 * 3 + 7 * 5)
    assert multiply_adds(config, (7, 7, 2), 5, run=True) == (
        49 * 9 * 2 * 6 + 9 * 9 * 6 * 3 + 9 * 4 + 9 * 4 * 3 + 7 * 5)


@pytest.mark.parametrize("side", [8, 28, 29, 32, 45, 64])
@pytest.mark.parametrize("stem", sorted(STEMS))
def test_the_final_side_is_the_smallest_map_that_a_batch_normalization_sees(monkeypatch, side, stem):
    seen = []
    normalize = Densenet.Batch_Normalization
    monkeypatch.setattr(Densenet, "Batch_Normalization", lambda x, *args, **options: (
        seen.append(min(x.shape.as_list()[1:3])), normalize(x, *args, **options))[1])
    config = Densenet.choose(blocks=(1, 1), growth_k=2, stem=stem)
    with tf.Graph().as_default():
        try:
            Densenet.DenseNet(tf.zeros((1, side, side, 1)), (1, 1), 2, training=False, stem=stem)
        except UserError:  # the images shrink to nothing
            seen.append(0)
    assert max(final_side(config, (side, side, 1)), 0) == min(seen)


@pytest.mark.parametrize("side, changes", [
    (28, dict(stem="3x3+pool")), (64, dict(stem="7x7s2+pool")), (64, dict(stem="imagenet", blocks=(1, 1, 1))),
    (64, dict(stem="imagenet_same", blocks=(1, 1, 1))), (30, dict(stem="3x3")), (34, dict(stem="3x3s2"))])
def test_the_maps_show_the_part_of_the_image_that_they_read(side, changes):
    """The middle of what a place reads, weighted by the gradient, is near the middle of its part of the extent."""
    config = Densenet.choose(**dict(dict(dataset="folder", data_dir="x", precision="float32", blocks=(1, 1, 1),
                                         growth_k=4, flip_average=False), **changes))
    (start, end), columns = extent_of_maps(config, side)
    assert columns == (start, end)
    with tf.Graph().as_default(), tf.Session() as sess:
        tf.set_random_seed(0)
        images = tf.placeholder(tf.float32, [8, side, side, 3])
        features = Densenet.inference(images, config, 2).features
        places = int(features.shape[1])
        gradients = [tf.gradients(tf.reduce_sum(features[:, places // 2, place]), images)[0] for place in range(places)]
        sess.run(tf.global_variables_initializer())
        values = sess.run(gradients, {images: np.random.RandomState(0).normal(size=images.shape.as_list())})
    weights = np.square(values).sum((1, 2, 4))  # [places, columns of the image]
    found = (weights * (np.arange(side) + 0.5)).sum(1) / weights.sum(1)
    pitch = (end - start) * side / places
    expected = start * side + pitch * (np.arange(places) + 0.5)
    assert np.abs(found - expected).max() < 0.36 * pitch, (found, expected)
    config.flip_average = True
    rows, columns = extent_of_maps(config, side)
    assert rows == (start, end) and sum(columns) == pytest.approx(1)
    assert columns[1] - columns[0] == pytest.approx(end - start)


def test_the_final_side_of_the_named_networks():
    """The paper's table 1 has 7×7; the first form on MNIST ends with one pixel."""
    assert final_side(Densenet.choose(network="densenet_121"), (224, 224, 3)) == 7
    assert final_side(Densenet.choose(network="densenet_mnist_first"), (28, 28, 1)) == 1
    assert final_side(Densenet.choose(network="densenet_mnist_first", dataset="digits"), (8, 8, 1)) < 1
