"""Which networks have a name, what do the names stand for, and what does a network cost?"""

import math

# What stands before the first block: (side of the convolution's kernel, its stride, its padding, whether batch
# normalization and ReLU follow, padding of the 3×3 max pooling of stride 2 or None for no pooling). A padding is
# TensorFlow's rule, or the number of zeros on every side.
STEMS = {
    "3x3": (3, 1, "SAME", False, None),
    "3x3+pool": (3, 1, "SAME", False, "VALID"),
    "3x3s2": (3, 2, "SAME", False, None),
    "7x7s2": (7, 2, "SAME", False, None),
    "7x7s2+pool": (7, 2, "SAME", False, "VALID"),
    # 224 -> 112 -> 56 pixels, as in the paper's table 1; zeros as in the authors' code and in published weights
    "imagenet": (7, 2, 3, True, 1),
    "imagenet_same": (7, 2, "SAME", True, "SAME"),  # as earlier versions padded, for their runs
}

_BC = dict(bottleneck=True, compression=0.5, transition_channels=0, transition_pooling="average", stem="3x3",
           stem_channels=0)
_IMAGENET = dict(_BC, stem="imagenet", image_size=224, crop_area=0.08)
# The settings that `network=NAME` brings. What a setting means stands beside its constant in Densenet.py.
NETWORKS = {
    # The paper's networks for CIFAR (table 2) and ImageNet (table 1)
    "densenet_40_12": dict(_BC, blocks=(12, 12, 12), growth_k=12, bottleneck=False, compression=1.0, stem_channels=16),
    "densenet_bc_40_12": dict(_BC, blocks=(6, 6, 6), growth_k=12),
    "densenet_bc_100_12": dict(_BC, blocks=(16, 16, 16), growth_k=12),
    "densenet_bc_250_24": dict(_BC, blocks=(41, 41, 41), growth_k=24),
    "densenet_bc_190_40": dict(_BC, blocks=(31, 31, 31), growth_k=40),
    "densenet_121": dict(_IMAGENET, blocks=(6, 12, 24, 16), growth_k=32),
    "densenet_161": dict(_IMAGENET, blocks=(6, 12, 36, 24), growth_k=48),
    "densenet_169": dict(_IMAGENET, blocks=(6, 12, 32, 32), growth_k=32),
    "densenet_201": dict(_IMAGENET, blocks=(6, 12, 48, 32), growth_k=32),
    # The forms in which this network was first described
    "densenet_mnist_first": dict(_BC, blocks=(4, 4, 32), growth_k=12, stem="7x7s2+pool"),
    "densenet_full": dict(_BC, blocks=(6, 12, 48, 32), growth_k=24, stem="7x7s2+pool"),
    "densenet_full_cifar": dict(_BC, blocks=(6, 12, 48, 32), growth_k=24, stem="7x7s2"),
    # The defaults on MNIST and CIFAR, and plain networks (no bottleneck layers) that train faster on a CPU
    "densenet_bc_28_12": dict(_BC, blocks=(4, 4, 4), growth_k=12, stem="3x3+pool", stem_channels=16),
    "densenet_bc_24_48": dict(_BC, blocks=(2, 4, 4), growth_k=48, stem="3x3+pool"),
    "densenet_mnist": dict(_BC, blocks=(2, 4, 4), growth_k=16, bottleneck=False, stem="3x3+pool"),
    "densenet_cifar": dict(_BC, blocks=(1, 2, 2), growth_k=160, bottleneck=False, stem="3x3+pool", stem_channels=64,
                           transition_pooling="max"),
    "densenet_folder": dict(_BC, blocks=(2, 4, 4), growth_k=32, bottleneck=False, stem="7x7s2+pool"),
}

# Short names in benchmark.py's table; the last three are what Densenet.py trains by default.
BENCHMARKED = {"mnist": "densenet_mnist_first", "bc40": "densenet_bc_40_12", "bc100": "densenet_bc_100_12",
               "cifar": "densenet_full_cifar", "121": "densenet_121", "default_mnist": "densenet_bc_28_12",
               "default_cifar": "densenet_bc_24_48", "default_folder": "densenet_folder"}


def synthetic_task(network):
    """What `benchmark.py` trains a named network on: ((H, W, C) of an image, classes, images in a step)."""
    if network in ("densenet_mnist", "densenet_mnist_first", "densenet_bc_28_12"):
        return (28, 28, 1), 10, 100
    if network in ("densenet_cifar", "densenet_bc_24_48"):
        return (32, 32, 3), 10, 128
    if network == "densenet_folder":
        return (64, 64, 3), 10, 32
    if NETWORKS[network]["stem"] in ("imagenet", "7x7s2+pool"):
        return (224, 224, 3), 1000, 16
    return (32, 32, 3), 10, 64


def transition_width(channels, compression, transition_channels=0):
    """Output channels of a transition: `transition_channels`, or if that is 0, the share `compression` of its input."""
    # Rounded up from just below, so that 0.7 · 10 is 7 in floating point, too.
    return transition_channels or max(1, math.floor(compression * channels + 1e-6))


def pools_first(transition_pooling, dropout_rate):
    """Whether a transition pools before its 1×1 convolution: the same function for a quarter of the products.

    Averages and convolutions are linear and can change places. The maximum and dropout cannot.
    """
    return transition_pooling == "average" and not dropout_rate


def sides(config, image_side):
    """Sides in pixels of the feature maps: after the stem's convolution, then in each dense block.

    Args:
        config: has the settings of the network as attributes.
        image_side: side of the images.
    """
    *_, pool_padding = STEMS[config.stem]
    stem, *others = [side for side, _, _ in _maps(config, image_side)]
    return [stem] + (others if pool_padding else [stem] + others)


def _maps(config, image_side):
    """Yields (side, middle, pitch) of the feature maps after each layer that can shrink them: the stem's convolution,
    its pooling if it has one, each transition. In pixels of the image along an axis, `middle` is the place of a map's
    first pixel, the middle of what it reads, and `pitch` the distance of its pixels."""
    kernel, stride, padding, _, pool_padding = STEMS[config.stem]
    layers = [(kernel, stride, padding)] + ([(3, 2, pool_padding)] if pool_padding else [])
    side, middle, pitch = image_side, 0.5, 1
    for kernel, stride, padding in layers + [(2, 2, "VALID")] * (len(config.blocks) - 1):
        if padding == "SAME":  # TensorFlow's rule
            after = math.ceil(side / stride)
            before = max((after - 1) * stride + kernel - side, 0) // 2
        else:
            before = 0 if padding == "VALID" else padding
            after = (side + 2 * before - kernel) // stride + 1
        middle += pitch * ((kernel - 1) / 2 - before)
        side, pitch = after, pitch * stride
        yield side, middle, pitch


def extent_of_maps(config, image_side):
    """Which part of an image the last block's feature maps show: ((top, bottom), (left, right)), shares of its side.

    A place of a map stands for the middle of what it reads. VALID pooling leaves pixels over at the bottom and on the
    right, so that the maps do not reach as far. With `flip_average`, they are means over an image and its mirror image.

    Args:
        config: has the settings of the network as attributes.
        image_side: side of the images.
    """
    *_, (side, middle, pitch) = _maps(config, image_side)
    start, length = (middle - pitch / 2) / image_side, side * pitch / image_side
    rows = start, start + length
    return rows, ((1 - length) / 2, (1 + length) / 2) if config.flip_average else rows


def final_side(config, image_shape):
    """Side in pixels of the last block's maps, the smallest that a batch normalization sees; below 1: too small.

    Args:
        config: has the settings of the network as attributes.
        image_shape: (H, W, C), H = W.
    """
    return sides(config, image_shape[0])[-1]


def multiply_adds(config, image_shape, class_num, run=False):
    """Multiply-adds of the convolutions and the classifier for one image, those with zeros of the padding included.

    Args:
        config: has the settings of the network as attributes.
        image_shape: (H, W, C), H = W.
        run: whether to count what is run in training, where a transition may pool first; else what the paper
            describes, which is how networks are compared.
    """
    kernel = STEMS[config.stem][0]
    k, channels = config.growth_k, config.stem_channels or 2 * config.growth_k
    stem_side, *block_sides = sides(config, image_shape[0])
    total = stem_side ** 2 * kernel ** 2 * image_shape[2] * channels
    for position, (layers, side) in enumerate(zip(config.blocks, block_sides)):
        for _ in range(layers):
            total += side ** 2 * (channels * 4 * k + 9 * 4 * k * k if config.bottleneck else 9 * channels * k)
            channels += k
        if position < len(config.blocks) - 1:
            kept = transition_width(channels, config.compression, config.transition_channels)
            pooled = run and pools_first(config.transition_pooling, config.dropout_rate)
            total += (side // 2 if pooled else side) ** 2 * channels * kept
            channels = kept
    return total + channels * class_num
