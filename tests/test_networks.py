"""Parameters and multiply-adds of the named networks, compared with the paper and torchvision's documentation."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import Densenet
from support.networks import NETWORKS, multiply_adds


def parameters(network, image_shape, class_num):
    chosen = {name: value for name, value in NETWORKS[network].items() if name not in ("image_size", "crop_area")}
    with tf.Graph().as_default():
        Densenet.DenseNet(tf.zeros((1,) + image_shape), training=False, class_num=class_num, **chosen)
        return sum(int(np.prod(variable.shape.as_list())) for variable in tf.trainable_variables())


@pytest.mark.parametrize("network,image_shape,class_num,expected", [
    ("densenet_40_12", (32, 32, 3), 10, 1019722),
    ("densenet_bc_100_12", (32, 32, 3), 10, 769162),
    pytest.param("densenet_bc_250_24", (32, 32, 3), 10, 15324406, marks=pytest.mark.campaign),
    pytest.param("densenet_bc_190_40", (32, 32, 3), 10, 25624430, marks=pytest.mark.campaign),
    ("densenet_121", (224, 224, 3), 1000, 7978856),
    ("densenet_169", (224, 224, 3), 1000, 14149480),
    ("densenet_201", (224, 224, 3), 1000, 20013928),
    ("densenet_161", (224, 224, 3), 1000, 28681000),
    ("densenet_full_cifar", (32, 32, 3), 10, 10236298),
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
