"""Records what torchvision's DenseNets answer with weights drawn from a seed, for test_pretrained.py.

    PYTHONPATH=tests python tests/record_pretrained.py        where torch and torchvision are installed

writes recorded/torchvision.json: logits alone, as the test draws the same weights by the same functions. Recorded with
torch 2.13.0 and torchvision 0.28.0. Nothing but `main` needs PyTorch.
"""

import json
import os
import zlib

import numpy as np

RECORDED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "recorded", "torchvision.json")
CLASSES = 7
NETWORKS = {"densenet_121": ((6, 12, 24, 16), 32, 64), "densenet_161": ((6, 12, 36, 24), 48, 96)}  # blocks, k, stem


def torch_shapes(blocks, growth_rate, stem_channels, classes):
    """{name: shape} of the tensors of torchvision's DenseNet, in its order, without the counters of batches."""
    shapes = {}

    def conv(name, channels_in, channels_out, side):
        shapes[name + ".weight"] = (channels_out, channels_in, side, side)

    def norm(name, channels):
        shapes.update({"%s.%s" % (name, variable): (channels,)
                       for variable in ("weight", "bias", "running_mean", "running_var")})

    conv("features.conv0", 3, stem_channels, 7)
    norm("features.norm0", stem_channels)
    channels = stem_channels
    for block, layers in enumerate(blocks, 1):
        for layer in range(1, layers + 1):
            scope = "features.denseblock%d.denselayer%d." % (block, layer)
            norm(scope + "norm1", channels)
            conv(scope + "conv1", channels, 4 * growth_rate, 1)
            norm(scope + "norm2", 4 * growth_rate)
            conv(scope + "conv2", 4 * growth_rate, growth_rate, 3)
            channels += growth_rate
        if block < len(blocks):
            norm("features.transition%d.norm" % block, channels)
            conv("features.transition%d.conv" % block, channels, channels // 2, 1)
            channels //= 2
    norm("features.norm5", channels)
    if classes:
        shapes["classifier.weight"], shapes["classifier.bias"] = (classes, channels), (classes,)
    return shapes


def drawn(name, shape):
    """The values of a tensor, float32: drawn from a seed that depends on its name alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if len(shape) > 1:
        return (random.randn(*shape) * np.sqrt(2.0 / np.prod(shape[1:]))).astype(np.float32)
    if name.endswith("running_var"):
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    scale, centre = (0.2, 1.0) if "norm" in name and name.endswith("weight") else (0.3, 0.0)
    return (centre + scale * random.randn(*shape)).astype(np.float32)


def drawn_weights(blocks, growth_rate, stem_channels, classes=CLASSES):
    """{torchvision's name: float32 array}."""
    return {name: drawn(name, shape)
            for name, shape in torch_shapes(blocks, growth_rate, stem_channels, classes).items()}


def drawn_images(count=2, side=64):
    """Normalized images, float32 [N, side, side, 3]."""
    return np.random.RandomState(3).randn(count, side, side, 3).astype(np.float32)


def main():
    import torch
    from torchvision.models import densenet121, densenet161

    found = {}
    for name, build in (("densenet_121", densenet121), ("densenet_161", densenet161)):
        net = build(weights=None, num_classes=CLASSES).eval()
        weights = drawn_weights(*NETWORKS[name])
        theirs = {key: tuple(value.shape) for key, value in net.state_dict().items()
                  if not key.endswith("num_batches_tracked")}
        assert list(theirs.items()) == [(key, value.shape) for key, value in weights.items()]
        net.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()}, strict=False)
        with torch.no_grad():
            found[name] = net.double()(torch.from_numpy(drawn_images().transpose(0, 3, 1, 2)).double()).tolist()
    with open(RECORDED, "w") as file:
        json.dump(found, file, indent=1, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    main()
