"""DenseNet (Huang et al. 2017, arXiv 1608.06993) in TensorFlow 1.x style: a graph, a session, a loop.

On MNIST it reaches 99.5% of the test images in 7 minutes on two cores. README.md has all measured results, and how the
script differs from the paper.

    python Densenet.py                      trains on MNIST, resumes what was stopped
    python Densenet.py growth_k=24 seed=3   the same with other hyperparameters, as a run of its own
    python Densenet.py mode=predict images=a.png,folder/    what a trained network sees in images
    python Densenet.py --help               all hyperparameters
    tensorboard --logdir logs               the curves and the graph

Shapes in comments: N images of a batch, k growth rate, C channels.
"""

import contextlib
import math
import os
import signal
import sys
import types

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends them without a traceback
# Read when TensorFlow is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # oneDNN's kernels, its default on some processors alone

import numpy as np
import tensorflow.compat.v1 as tf

import cifar10
import mnist_loader
from ops import (Average_pooling, Batch_Normalization, Concatenation, Drop_out, Global_Average_Pooling, Linear,
                 Max_Pooling, Relu, advance_moving_statistics, conv_layer)
from support import UserError, image_folder, say, settings
from support.cluster import Cluster, Nothing
from support.data import RandomShare, color_preprocessing, data_augmentation
from support.download import Unavailable
from support.evaluation import SHOWN_MISTAKES, Evaluation
from support.export import export_graph
from support.interruption import Interruption
from support.machine import fast_precision
from support.prefetch import prefetched
from support.report import Report, report_evaluation
from support.run_directory import Checkpoints, RunDirectory, runs_in, step_of, write_json
from support.settings import boolean, file_name, integer, integers, number, one_of, path, paths

# How the data sets are read.
DATASETS = {
    "mnist": mnist_loader.prepare_data,
    "digits": mnist_loader.prepare_digits,
    "cifar10": cifar10.prepare_data,
    "cifar100": cifar10.prepare_cifar100,
    "cifar100_coarse": cifar10.prepare_cifar100_coarse,
    "folder": image_folder.prepare_data,
}

# What stands before the first block: (side of the kernel, stride, batch normalization and ReLU, padding of the 3×3/2
# max pooling or None for no pooling).
STEMS = {
    "3x3": (3, 1, False, None),
    "3x3+pool": (3, 1, False, "VALID"),
    "3x3s2": (3, 2, False, None),
    "7x7s2": (7, 2, False, None),
    "7x7s2+pool": (7, 2, False, "VALID"),
    "imagenet": (7, 2, True, "SAME"),  # 224 -> 112 -> 56, as in the paper's table 1
}

# Networks by name. `first_block` numbers their scopes dense_0, trans_0, … or dense_1, trans_1, …
_BC = dict(bottleneck=True, compression=0.5, transition_channels=None, transition_pooling="average", stem="3x3",
           stem_channels=None, first_block=1)
_IMAGENET = dict(_BC, stem="imagenet", image_size=224, crop_area=0.08)
NETWORKS = {
    "densenet_mnist": dict(_BC, blocks=(2, 4, 4), growth_k=16, bottleneck=False, stem="3x3+pool", first_block=0),
    "densenet_mnist_first": dict(_BC, blocks=(4, 4, 32), growth_k=12, stem="7x7s2+pool", first_block=0),
    "densenet_cifar": dict(_BC, blocks=(1, 2, 2), growth_k=160, bottleneck=False, stem="3x3+pool", stem_channels=64,
                           transition_pooling="max"),
    "densenet_folder": dict(_BC, blocks=(2, 4, 4), growth_k=32, bottleneck=False, stem="7x7s2+pool"),
    "densenet_40_12": dict(_BC, blocks=(12, 12, 12), growth_k=12, bottleneck=False, compression=1.0, stem_channels=16),
    "densenet_bc_40_12": dict(_BC, blocks=(6, 6, 6), growth_k=12),
    "densenet_bc_100_12": dict(_BC, blocks=(16, 16, 16), growth_k=12),
    "densenet_bc_250_24": dict(_BC, blocks=(41, 41, 41), growth_k=24),
    "densenet_bc_190_40": dict(_BC, blocks=(31, 31, 31), growth_k=40),
    "densenet_121": dict(_IMAGENET, blocks=(6, 12, 24, 16), growth_k=32),
    "densenet_161": dict(_IMAGENET, blocks=(6, 12, 36, 24), growth_k=48),
    "densenet_169": dict(_IMAGENET, blocks=(6, 12, 32, 32), growth_k=32),
    "densenet_201": dict(_IMAGENET, blocks=(6, 12, 48, 32), growth_k=32),
    "densenet_full": dict(_BC, blocks=(6, 12, 48, 32), growth_k=24, stem="7x7s2+pool"),
    "densenet_full_cifar": dict(_BC, blocks=(6, 12, 48, 32), growth_k=24, stem="7x7s2"),
}

# ---- Hyperparameters: edit them here, or override any of them for one run (growth_k=24 on the command line). ----
# None: the data set's own default, in the table below. What is changed from it becomes part of the run's name.

mode: one_of(("train", "evaluate", "predict", "export")) = "train"  # the others need a run that was trained

# Data
dataset: one_of(tuple(DATASETS)) = "mnist"  # what to train on; folder: your own images, in data_dir
data_dir: path() = "data"  # where data sets are sought, in its folder of the data set's name first; downloads go there
cache_dir: path() = "cache"  # where decoded images of dataset=folder are kept
digits_stand_in: boolean() = True  # without MNIST, train on the small digits inside scikit-learn instead of stopping
validation_size: integer(0, 1000000) = None  # training images held out to choose by; 0 for none
image_size: integer(8, 1024) = None  # pixels along a side that images of dataset=folder get
augmentation: boolean() = None  # change training images at random, by the next five
crop_area: number(0.01, 1.0) = None  # least share of an image of dataset=folder that a random crop shows; 1: all of it
shift: integer(0, 8) = None  # pixels, along each axis
rotation: number(0.0, 45.0) = None  # degrees, either way
flip: boolean() = None  # left to right
cutout: integer(0, 64) = None  # pixels along a side of a square that is hidden, anywhere
flip_average: boolean() = None  # test by the mean of the logits of an image and of its mirror image
shift_average: integer(0, 8) = None  # test by the mean of an image moved so many pixels to each corner

# Network
network: one_of(tuple(NETWORKS)) = None  # in the table NETWORKS; the constants of this group change parts of it
blocks: integers(1, 256, most=8) = None  # layers in each dense block; the last one is followed by the classifier
growth_k: integer(1, 512) = None  # growth rate k: feature maps that each layer adds
bottleneck: boolean() = None  # a 1x1 convolution to 4k before each 3x3 convolution
compression: number(0.01, 1.0) = None  # share of its channels that a transition keeps
transition_channels: integer(1, 65536) = None  # channels of every transition instead; k as first described
transition_pooling: one_of(("average", "max")) = None  # how a transition halves the sides; the paper's: average
stem: one_of(tuple(STEMS)) = None  # what stands before the first block
stem_channels: integer(1, 4096) = None  # its channels; None in a network: 2k
dropout_rate: number(0.0, 0.95) = None  # share of activations zeroed after each convolution but the first

# Training
optimizer: one_of(("adam", "momentum")) = None  # momentum: Nesterov's, 0.9, and the paper's recipe with it
init_learning_rate: number(1e-8, 100.0) = None  # before any decay
schedule: one_of(("constant", "steps", "cosine", "exponential")) = None  # of the rate; learning_rate() has them
warmup: number(0.0, 0.9) = None  # share of the steps in which the rate rises from 0 first
epsilon: number(1e-12, 1.0) = None  # Adam's, added to the denominator
weight_decay: number(0.0, 1.0) = None  # of all trainable variables: by their gradients, or beside Adam's steps
label_smoothing: number(0.0, 0.9) = None  # share of each training label that is spread over all classes
batch_size: integer(1, 65536) = None  # images in a step
total_epochs: integer(1, 100000) = None  # passes over the training images; raise it to go on with a finished run
precision: one_of(("float32", "bfloat16", "float16")) = None  # of activations and products; the rest is float32 anyway
memory_efficient: boolean() = False  # compute again for the gradients what can be, instead of keeping it
seed: integer(0, 2 ** 31 - 1) = None  # of weights, order, augmentation and dropout

# Several devices; several machines share a run through TF_CONFIG, see README.md
devices: integer(0, 1024) = 0  # of each process, that share each batch; 0: as many GPUs as can, else the CPU as two
sync_batch_norm: boolean() = None  # normalize by statistics of the whole batch instead of each device's part
worker_timeout: number(1.0, 100000.0) = 60.0  # seconds of silence after which another worker is lost

# The other modes
checkpoint: path() = None  # what the other modes use; None: the best on validation, else the newest
images: paths() = None  # what mode=predict looks at: image files, and folders of them
json: path() = None  # a file that gets mode=predict's answers, too

# Where a run writes, relative to where the command is run
log_dir: path() = "logs"  # TensorBoard's curves and graph
model_dir: path() = "model"  # checkpoints and results
run_name: file_name() = None  # None: the data set and what was changed
checkpoint_minutes: number(0.001, 100000.0) = 10.0  # saved at least this often, and after each epoch
trace_step: integer(1, 10 ** 9) = None  # a step whose operations are timed, for TensorBoard and chrome://tracing
test_every_epoch: boolean() = False  # for those who want the curve; choose nothing by it

# What None means, for each data set, chosen on the validation split; README.md says what was tried.
_COMMON = dict(augmentation=True, cutout=0, flip_average=False, shift_average=0, dropout_rate=0.0, optimizer="adam",
               epsilon=1e-8, weight_decay=0.0, label_smoothing=0.0, precision="float32", seed=0, sync_batch_norm=False)
_HANDWRITING = dict(_COMMON, network="densenet_mnist", shift=2, rotation=10.0, flip=False, init_learning_rate=5e-3,
                    schedule="exponential", warmup=0.02)
_PHOTOS = dict(_COMMON, network="densenet_cifar", shift=3, rotation=0.0, flip=True, cutout=12, flip_average=True,
               shift_average=1, init_learning_rate=5e-3, schedule="cosine", warmup=0.2, weight_decay=0.1,
               label_smoothing=0.1, batch_size=128, total_epochs=46, validation_size=5000, precision=fast_precision())
_OWN_IMAGES = dict(_PHOTOS, network="densenet_folder", image_size=64, crop_area=1.0, shift=4, cutout=0, shift_average=0,
                   batch_size=32, total_epochs=30, validation_size=None)  # a tenth of the training images
DEFAULTS = {
    "mnist": dict(_HANDWRITING, batch_size=100, total_epochs=20, validation_size=5000),
    "digits": dict(_HANDWRITING, batch_size=50, total_epochs=30, validation_size=100),
    "cifar10": _PHOTOS,
    "cifar100": _PHOTOS,
    "cifar100_coarse": _PHOTOS,
    "folder": _OWN_IMAGES,
}

# What an optimizer brings along, over the data set's defaults: the paper's section 4.2.
RECIPES = {
    "adam": {},
    "momentum": dict(init_learning_rate=0.1, schedule="steps", warmup=0.0, weight_decay=1e-4, label_smoothing=0.0,
                     flip_average=False, shift_average=0, batch_size=64, total_epochs=300, precision="float32"),
}

OPTIONAL = ("trace_step", "checkpoint", "images", "json")  # may be None in the end

# ---- End of the hyperparameters. ----


def pools_first(transition_pooling, dropout_rate):
    """Whether transitions pool before their 1×1 convolution: the same function by a quarter of the products.

    Averages and convolutions are linear, so that they can change places; the maximum and dropout are not.
    """
    return transition_pooling == "average" and not dropout_rate


class DenseNet:
    """The network. `model` is its output: logits [N, class_num].

    Args:
        x: normalized images [N, H, W, C], floating point; activations and products are computed in its type.
        blocks: layers in each dense block.
        filters: growth rate k.
        training: a Python bool or a bool tensor.
        class_num: number of classes.
        bottleneck: whether a 1×1 convolution to 4k channels stands before each 3×3 convolution.
        compression: share of its channels that a transition keeps, the paper's θ.
        transition_channels: channels of every transition, instead of `compression`.
        transition_pooling: "average", the paper's, or "max": how a transition halves height and width.
        stem: a name in STEMS.
        stem_channels: its channels; None for 2k.
        dropout_rate: share of activations zeroed after each convolution but the first.
        first_block: number in the name of the first dense block's scope.
        replica: which of the devices that share a batch computes it, a `support.cluster.Replica`; None: there is one.
        memory_efficient: whether concatenations and normalized activations are computed again for the gradients
            instead of kept; needs a replica in training.
    Raises:
        UserError: the images are too small for the network; names the layer where they shrink to nothing.
    """

    def __init__(self, x, blocks, filters, training, class_num=10, bottleneck=True, compression=0.5,
                 transition_channels=None, transition_pooling="average", stem="3x3", stem_channels=None,
                 dropout_rate=0.0, first_block=0, replica=None, memory_efficient=False):
        self.blocks = tuple(blocks)
        self.nb_blocks = len(self.blocks) - 1  # pairs of a dense block and a transition before the final block
        self.filters = filters
        self.training = training
        self.class_num = class_num
        self.bottleneck = bottleneck
        self.compression = compression
        self.transition_channels = transition_channels
        self.transition_pooling = transition_pooling
        self.stem = stem
        self.stem_channels = stem_channels or 2 * filters
        self.dropout_rate = dropout_rate
        self.first_block = first_block
        self.replica = replica
        self.memory_efficient = memory_efficient
        self.replica_index = replica.index if replica else 0
        self.input_size = "%sx%s" % (x.shape[1], x.shape[2])
        self.model = self.Dense_net(x)

    def bottleneck_layer(self, x, scope):
        """A layer of a dense block, the paper's H: [N, H, W, C] -> [N, H, W, k]."""
        with tf.variable_scope(scope):
            if self.bottleneck:
                x = self._norm_relu(x, scope="batch1", recompute=self.memory_efficient)
                x = conv_layer(x, 4 * self.filters, kernel=1, layer_name="conv1")  # [N, H, W, 4k]
                x = Drop_out(x, self.dropout_rate, self.training, "drop1", self.replica_index)
            x = self._norm_relu(x, scope="batch2", recompute=self.memory_efficient)
            x = conv_layer(x, self.filters, kernel=3, layer_name="conv2")  # [N, H, W, k]
            return Drop_out(x, self.dropout_rate, self.training, "drop2", self.replica_index)

    def transition_layer(self, x, scope):
        """Between two dense blocks: [N, H, W, C] -> [N, H/2, W/2, ⌊θC⌋]."""
        with tf.variable_scope(scope):
            # Rounded up from just below, so that 0.7 · 10 is 7 in floating point, too.
            channels = self.transition_channels or max(1, math.floor(self.compression * int(x.shape[-1]) + 1e-6))
            self._require(x, 2, scope)
            x = self._norm_relu(x, scope="batch1", recompute=self.memory_efficient)
            pooling = {"average": Average_pooling, "max": Max_Pooling}[self.transition_pooling]
            if pools_first(self.transition_pooling, self.dropout_rate):
                x = pooling(x, pool_size=2, stride=2)
                return conv_layer(x, channels, kernel=1, layer_name="conv1")
            x = conv_layer(x, channels, kernel=1, layer_name="conv1")
            x = Drop_out(x, self.dropout_rate, self.training, "drop1", self.replica_index)
            return pooling(x, pool_size=2, stride=2)

    def dense_block(self, input_x, nb_layers, layer_name):
        """Each layer sees the block's input and all earlier outputs: [N, H, W, C] -> [N, H, W, C + nb_layers·k]."""
        with tf.variable_scope(layer_name):
            x = input_x
            for i in range(nb_layers):
                x = Concatenation([x, self.bottleneck_layer(x, scope="bottleN_%d" % i)])
            return x

    def Dense_net(self, input_x):
        """Stem, dense blocks with transitions between them, global average pooling, classifier."""
        kernel, stride, normalized, pool_padding = STEMS[self.stem]
        x = conv_layer(input_x, self.stem_channels, kernel, stride, layer_name="conv0")
        if normalized:
            x = self._norm_relu(x, scope="batch0")
        if pool_padding:
            self._require(x, 3 if pool_padding == "VALID" else 1, "the pooling after conv0")
            x = Max_Pooling(x, pool_size=3, stride=2, padding=pool_padding)

        for i, nb_layers in enumerate(self.blocks[:-1], start=self.first_block):
            x = self.dense_block(x, nb_layers, layer_name="dense_%d" % i)
            x = self.transition_layer(x, scope="trans_%d" % i)
        x = self.dense_block(x, self.blocks[-1], layer_name="dense_final")

        x = self._norm_relu(x, scope="linear_batch")
        x = Global_Average_Pooling(tf.cast(x, tf.float32))  # [N, C]
        return Linear(x, self.class_num)

    def _norm_relu(self, x, scope, recompute=False):
        return Batch_Normalization(x, self.training, scope, Relu, self.replica, recompute)

    def _require(self, x, pool_size, scope):
        if min(int(x.shape[1]), int(x.shape[2])) < pool_size:
            raise UserError("the %s images shrink to 0 at %s: use a network with fewer blocks or a stem that shrinks "
                            "them less" % (self.input_size, scope))


def choose(arguments=(), **overrides):
    """The hyperparameters of a run: what was given or edited, else what its data set, network and optimizer bring.

    Args:
        arguments: overrides as on the command line; `overrides` are the same as values.
    Returns:
        a namespace of all hyperparameters, with `overridden`, {name: value} of those given here, and `shaping`, {name:
        value} of those that matter to the result.
    Raises:
        UserError: an unknown name or a bad value, here or in an edited constant or table.
    """
    module = sys.modules[__name__]
    kinds = settings.declared(module)
    given, overridden = settings.collect(module, arguments, **overrides)
    given = {name: value for name, value in given.items() if value is not None}

    def chosen(name, defaults):
        return given.get(name) or settings.check(name, defaults.get(name), kinds)

    data_defaults = DEFAULTS[chosen("dataset", {})]
    standard = dict(data_defaults, **NETWORKS[chosen("network", data_defaults)])
    if "image_size" not in data_defaults:  # the data set has it
        standard.update(image_size=None, crop_area=1.0)
        if "image_size" in given or given.get("crop_area", 1.0) != 1.0:
            raise UserError("image_size and crop_area belong to dataset=folder, not to %s: leave them out"
                            % chosen("dataset", {}))
    optimizer_name = chosen("optimizer", data_defaults)
    standard.update(RECIPES[optimizer_name])
    if optimizer_name == "momentum" and not given.get("augmentation", standard["augmentation"]):
        standard["dropout_rate"] = 0.2  # the paper's section 4.2, on data that is not augmented
    for name, value in standard.items():  # the tables are edited, too
        if value is not None and name != "first_block":
            standard[name] = settings.check(name, value, kinds)
    values = dict(standard, **given)
    for name in kinds:
        if name not in values and name not in OPTIONAL + ("run_name",):
            settings.check(name, None, kinds)  # a constant without a default was set to None

    named = [name for name in kinds if name in standard and name != "total_epochs"]
    if "run_name" not in values:
        brought = dict(standard, network=data_defaults["network"], optimizer=data_defaults["optimizer"])
        values["run_name"] = settings.check("run_name", "-".join([values["dataset"]] + [
            "%s=%s" % (name, settings.shown(values[name])) for name in named if values[name] != brought[name]]), kinds)
    shaping = {name: values[name] for name in ["dataset"] + named}
    return types.SimpleNamespace(overridden=overridden, shaping=shaping, **dict(dict.fromkeys(OPTIONAL), **values))


def prepare_data(config):
    """The data set of the run, and the run's hyperparameters: those of `digits` where that stands in for MNIST."""
    prepare = DATASETS[config.dataset]
    try:
        if config.dataset == "folder":
            return prepare(config.data_dir, config.validation_size, config.image_size, config.crop_area,
                           config.cache_dir), config
        return prepare(config.data_dir, config.validation_size), config
    except Unavailable as error:
        asked_for = {"dataset", "data_dir"} & set(config.overridden)
        if config.dataset != "mnist" or not config.digits_stand_in or asked_for:
            raise
        say("%s. Training on scikit-learn's small digits instead (digits_stand_in=False to stop here)." % error)
        return prepare_data(choose(**dict(config.overridden, dataset="digits")))


def training_batches(data, config, epoch, first_batch, share=slice(None)):
    """The epoch's batches from number `first_batch` on: normalized images [N, H, W, C] and labels [N].

    A pure function of (seed, epoch, batch). The incomplete last batch is dropped: the order is new every epoch.
    `share`: the part of each batch that this process takes.
    """
    random = np.random.RandomState([config.seed, epoch])
    order = random.permutation(len(data.train))
    last_batch = len(data.train) // config.batch_size
    places = np.arange(first_batch * config.batch_size, last_batch * config.batch_size)
    places = places.reshape(-1, config.batch_size)[:, share]  # [batches, N]
    if config.dataset == "folder":
        boxes = None
        if config.augmentation and config.crop_area < 1.0:
            boxes = image_folder.random_boxes(len(order), config.crop_area, random)[places]
        pixels = data.train.images.crops(order[places], boxes)
    else:
        pixels = (data.train.images[chosen] for chosen in order[places])
    for batch, (chosen, images) in enumerate(zip(order[places], pixels), start=first_batch):
        images = color_preprocessing(images, data.mean, data.deviation)
        if config.augmentation:
            random = RandomShare(np.random.RandomState([config.seed, epoch, batch]), share, config.batch_size)
            images = data_augmentation(images, data.border, random, config.shift, config.rotation, config.flip,
                                       config.cutout)
        yield images, data.train.labels[chosen]


def learning_rate(step, total_steps, config):
    """The rate of step `step` (from 0) of `total_steps`: a pure function, so that resuming needs no replay.

    steps: divided by 10 at 50% and 75% of the steps, the paper's section 4.2; cosine: one period of Loshchilov & Hutter
    2017 (arXiv 1608.03983); exponential: by the same factor each step, to a hundredth in the end.
    """
    warmup_steps = config.warmup * total_steps
    if step < warmup_steps:
        return config.init_learning_rate * (step + 1) / (warmup_steps + 1)
    if config.schedule == "steps":
        return config.init_learning_rate * 0.1 ** ((2 * step >= total_steps) + (4 * step >= 3 * total_steps))
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    if config.schedule == "cosine":
        return config.init_learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "exponential":
        return config.init_learning_rate * 0.01 ** progress
    return config.init_learning_rate


def logits_of(images, config, class_num, training, replica=None):
    """The logits [N, class_num] of normalized images [N, H, W, C]."""
    return DenseNet(tf.cast(images, config.precision), config.blocks, config.growth_k, training, class_num,
                    config.bottleneck, config.compression, config.transition_channels, config.transition_pooling,
                    config.stem, config.stem_channels, config.dropout_rate, config.first_block, replica,
                    config.memory_efficient).model


def views_of(images, config):
    """What the test averages over: variants of normalized images [N, H, W, C], a list of such.

    With both averages, two of the four moved images are mirrored. What comes in at the edges is the mean colour, 0.
    """
    views = [images, images] if config.flip_average else [images]
    if config.shift_average:
        shift = config.shift_average
        height, width = (int(side) for side in images.shape[1:3])
        padded = tf.pad(images, [[0, 0], [shift, shift], [shift, shift], [0, 0]])
        views = [padded[:, y:y + height, x:x + width] for y in (0, 2 * shift) for x in (0, 2 * shift)]
    if config.flip_average:
        views[1::2] = [tf.reverse(view, [2]) for view in views[1::2]]
    return views


def inference(images, config, class_num):
    """The logits [N, class_num] as they are used: by the moving statistics, the mean over the views of each image."""
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        views = views_of(images, config)
        logits = logits_of(tf.concat(views, 0), config, class_num, training=False)
        return tf.add_n(tf.split(logits, len(views))) / len(views)


def loss_of(logits, labels, smoothing=0.0):
    """Each image's cross entropy [N]. `smoothing`: Szegedy et al. 2016 (arXiv 1512.00567), section 7."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * tf.reduce_mean(tf.nn.log_softmax(logits), 1)
    return losses


def build_evaluation(images, labels, config, class_num, cluster):
    """What `Evaluate` feeds and runs: images and labels; losses, predicted classes, their probabilities, each [N].

    Each of the process's devices takes its part of the images.
    """
    logits = []
    for replica, part in zip(cluster.replicas, cluster.split(images)):
        with tf.device(replica.device):
            logits.append(inference(part, config, class_num))
    logits = tf.concat(logits, 0)
    with tf.name_scope("evaluation"):
        return types.SimpleNamespace(images=images, labels=labels, losses=loss_of(logits, labels),
                                     predicted=tf.argmax(logits, 1),
                                     probabilities=tf.reduce_max(tf.nn.softmax(logits), 1))


def histograms_of(gradients):
    """A serialized summary of [(gradient, variable)]: histograms of weights, batch norm's scales, all gradients."""
    values = {}
    for gradient, variable in gradients:
        kind = {"kernel": "weights", "gamma": "scales"}.get(variable.op.name.rpartition("/")[2])
        if kind:
            values["%s/%s" % (kind, variable.op.name)] = variable
        values["gradients/%s" % variable.op.name] = gradient
    # Not tf.summary.histogram, which would put the names of the scopes around it before the tag.
    return tf.raw_ops.MergeSummary(inputs=[
        tf.raw_ops.HistogramSummary(tag=tag, values=tf.where_v2(tf.math.is_finite(value), value, 0.0))
        for tag, value in values.items()])


class AdamW(tf.train.AdamOptimizer):
    """Adam with decoupled weight decay, Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2."""

    def __init__(self, rate, epsilon, weight_decay):
        super().__init__(rate, epsilon=epsilon)
        self._rate, self._weight_decay = rate, weight_decay

    def apply_gradients(self, gradients, global_step=None, name=None):
        decays = []
        if self._weight_decay:
            # The gradients are of the weights before. By groups, as each variable waiting for each would be quadratic.
            with tf.control_dependencies([tf.group(*(gradient for gradient, _ in gradients))]):
                decays = [variable.assign_sub(self._rate * self._weight_decay * variable, read_value=False)
                          for _, variable in gradients]
        with tf.control_dependencies([tf.group(*decays)]):
            return super().apply_gradients(gradients, global_step, name)


def build_graph(data, config, cluster=None):
    """Builds placeholders, network, loss and training step in the default graph; returns the tensors to run and feed.

    The network stands in it for each replica of this process, and in the scope `inference` as validation looks at
    images and as the test does, all on one set of variables. `cluster`: the processes and devices that train; None for
    this process alone.
    """
    cluster = cluster or Cluster(config.batch_size, devices=1)
    tf.set_random_seed(config.seed)  # ops.py derives initial weights and dropout masks from it
    batch_size = cluster.share.stop - cluster.share.start  # of this process
    class_num = len(data.class_names)
    images = tf.placeholder(tf.float32, (batch_size,) + data.image_shape, "images")  # [N, H, W, C]
    labels = tf.placeholder(tf.int64, [batch_size], "labels")
    rate = tf.placeholder(tf.float32, [], "learning_rate")
    stop_request = tf.placeholder_with_default(tf.constant(0.0), [], "stop_request")
    global_step = tf.train.get_or_create_global_step()
    if config.optimizer == "momentum":
        optimizer = tf.train.MomentumOptimizer(rate, 0.9, use_nesterov=True)
    else:
        optimizer = AdamW(rate, config.epsilon, config.weight_decay)
    if config.precision == "float16":  # small gradients would be 0 in it: Micikevicius et al. 2018 (arXiv 1710.03740)
        optimizer = tf.train.experimental.MixedPrecisionLossScaleOptimizer(optimizer, "dynamic")

    towers = []  # of each replica: what is averaged over all of them
    for replica, its_images, its_labels in zip(cluster.replicas, cluster.split(images), cluster.split(labels)):
        with replica.scope():
            logits = logits_of(its_images, config, class_num, True, replica)
            with tf.name_scope("loss"):
                cost = tf.reduce_mean(loss_of(logits, its_labels, config.label_smoothing))
            with tf.name_scope("accuracy"):
                accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), its_labels), tf.float32))
            gradients, variables = zip(*optimizer.compute_gradients(
                cost, gate_gradients=tf.train.Optimizer.GATE_NONE))  # else those of the images are computed, too
            moving, means, variances = zip(*replica.statistics)  # of these, `moving` is the same in all replicas
            towers.append([cost, accuracy, stop_request, *gradients, tf.concat(means, 0), tf.concat(variances, 0)])
    cost, accuracy, stop, *gradients, mean, variance = cluster.mean(towers)
    gradients = list(zip(gradients, variables))

    wants_histograms = tf.placeholder_with_default(False, [], "wants_histograms")
    with tf.name_scope("histograms"):
        histograms = tf.cond(wants_histograms, lambda: histograms_of(gradients), lambda: tf.constant(b""))

    with tf.name_scope("optimizer"):
        if config.weight_decay and config.optimizer == "momentum":  # L2, as in the paper
            gradients = [(gradient + config.weight_decay * variable, variable) for gradient, variable in gradients]
        train = optimizer.apply_gradients(gradients)
        with tf.control_dependencies([train]):  # apart, as float16's scaling skips some steps, which count, too
            train = global_step.assign_add(1, read_value=False)
    with tf.name_scope("moving_statistics"):
        train = tf.group(train, *advance_moving_statistics(moving, mean, variance))

    with tf.name_scope("inference"):
        plain = types.SimpleNamespace(**dict(vars(config), flip_average=False, shift_average=0))
        validation = test = build_evaluation(images, labels, plain, class_num, cluster)
        if config.flip_average or config.shift_average:
            test = build_evaluation(images, labels, config, class_num, cluster)

    # Saved with the weights, so that a resumed run knows what the best so far is.
    best_accuracy = tf.get_variable("best_accuracy", [], tf.float64, tf.zeros_initializer(), trainable=False)
    new_best = tf.placeholder(tf.float64, [], "new_best")
    # What later inputs are normalized by, where the training set is not at hand.
    with tf.variable_scope("normalization"):
        tf.get_variable("mean", initializer=data.mean, trainable=False)
        tf.get_variable("deviation", initializer=data.deviation, trainable=False)
    cluster.build_agreement()
    return types.SimpleNamespace(
        images=images, labels=labels, rate=rate, global_step=global_step, train=train, cost=cost, accuracy=accuracy,
        stop=stop, stop_request=stop_request, histograms=histograms, wants_histograms=wants_histograms,
        best_accuracy=best_accuracy, set_best=best_accuracy.assign(new_best), new_best=new_best,
        initialize=tf.global_variables_initializer(), validation=validation, test=test,
        parameters=sum(int(np.prod(variable.shape.as_list())) for variable in tf.trainable_variables()))


def session_config(cluster=None, precision="float32"):
    """Operations without a kernel for the device they were put on run elsewhere; a GPU's memory is taken as needed."""
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.allow_growth = True
    # Leaves TensorFlow's graph optimizer out, which takes most of the first step's time and makes later ones hardly
    # faster. What XLA compiles for bfloat16 fails without it: its clusters then span devices.
    config.graph_options.place_pruned_graph = precision != "bfloat16"
    return (cluster or Cluster()).configure(config)


def Evaluate(sess, net, split, data, cluster=None):
    """An `Evaluation` of every image of the split, the incomplete last batch included.

    `net` is what `build_evaluation` built. Workers take turns with the batches; of the mistakes each knows its own.
    """
    batch_size = int(net.images.shape[0])
    cluster = cluster or Cluster()
    loss_sum = 0.0
    confusion = np.zeros([len(data.class_names)] * 2)
    mistakes = []
    for start in range(cluster.task * batch_size, len(split), len(cluster.workers) * batch_size):
        images = color_preprocessing(split.images[start:start + batch_size], data.mean, data.deviation)
        labels = split.labels[start:start + batch_size]
        count = len(labels)
        if count < batch_size:  # padded with copies of the first image, which are not counted
            images = np.concatenate([images, images[:1].repeat(batch_size - count, axis=0)])
            labels = np.concatenate([labels, labels[:1].repeat(batch_size - count)])
        losses, predicted, probabilities = (values[:count] for values in sess.run(
            [net.losses, net.predicted, net.probabilities], {net.images: images, net.labels: labels}))
        labels = labels[:count]
        loss_sum += losses.sum(dtype=np.float64)
        np.add.at(confusion, (labels, predicted), 1)
        mistakes += [(start + place, int(labels[place]), int(predicted[place]), float(probabilities[place]))
                     for place in np.flatnonzero(predicted != labels)]
    loss_sum, *confusion = cluster.total(sess, np.append(loss_sum, confusion))
    mistakes.sort(key=lambda mistake: -mistake[3])
    return Evaluation(loss_sum / len(split), np.array(confusion, np.int64).reshape([len(data.class_names)] * 2),
                      mistakes[:SHOWN_MISTAKES])


class Stopped(Exception):
    """A signal stopped the run, which is saved."""

    def __init__(self, signal_number, message):
        super().__init__(message)
        self.signal_number = signal_number


def train(arguments=(), **overrides):
    """Trains a run to its end, from its newest checkpoint where there is one, and tests it once.

    Args:
        arguments: hyperparameters as on the command line; `overrides` are the same as values.
    Returns:
        the content of the run's result.json; None in a worker that is not the chief.
    Raises:
        UserError: bad hyperparameters, data or run directory; a loss that is no number.
        Stopped: Ctrl-C or SIGTERM.
    """
    config = choose(arguments, **overrides)
    data, config = prepare_data(config)
    cluster = Cluster(config.batch_size, config.devices, config.sync_batch_norm, config.worker_timeout,
                      os.environ.get("TF_CONFIG", ""))
    steps_per_epoch = len(data.train) // config.batch_size
    total_steps = steps_per_epoch * config.total_epochs
    if steps_per_epoch == 0:
        raise UserError("batch_size=%d is more than the %d training images of %s: make it smaller"
                        % (config.batch_size, len(data.train), data.name))
    settings_and_data = dict(config.shaping, data=data.fingerprint())
    directory = Nothing(RunDirectory)
    if cluster.is_chief:
        directory = RunDirectory(os.path.join(config.model_dir, config.run_name), settings_and_data)

    with tf.Graph().as_default() as graph, tf.device(cluster.place), directory, Interruption() as interruption:
        net = build_graph(data, config, cluster)
        checkpoints = Checkpoints(directory) if cluster.is_chief else Nothing(Checkpoints)
        report = Report(config, directory, cluster) if cluster.is_chief else Nothing(Report)
        session = session_config(cluster, config.precision)
        cluster.start(session)
        with cluster.watched(), tf.Session(cluster.target, config=session, graph=graph) as sess, report:
            cluster.compare(sess, dict(settings_and_data, total_epochs=config.total_epochs))
            sess.run(net.initialize)
            checkpoints.restore_newest(sess)
            cluster.copy_from_chief(sess)
            step = int(sess.run(net.global_step))
            result = directory.read_json("result.json")
            finished = bool(result) and step >= total_steps
            if any(cluster.total(sess, [finished])):
                report.finished(result)
                cluster.leave(sess)
                return result
            report.start(sess, data, net.parameters, step)
            stop = 0

            def stop_signal():
                if cluster.alone:
                    return interruption.signal_number
                return (interruption.signal_number or signal.SIGTERM) if stop else None  # all stop after the same step

            def save():
                checkpoints.save(sess, step)
                report.saved(step)
                if stop_signal():
                    cluster.leave(sess)
                    raise Stopped(stop_signal(), "stopped and saved at step %d of %d: the same command goes on from "
                                  "there" % (step, total_steps))

            while step < total_steps:
                epoch, batches_done = divmod(step, steps_per_epoch)
                batches = prefetched(training_batches(data, config, epoch, batches_done, cluster.share))
                with contextlib.closing(batches):  # here, where a second Ctrl-C meanwhile is heard
                    for images, labels in batches:
                        rate = learning_rate(step, total_steps, config)
                        options, traced = report.tracing(step + 1) or (None, None)
                        _, loss, accuracy, stop, histograms = sess.run(
                            [net.train, net.cost, net.accuracy, net.stop, net.histograms],
                            {net.images: images, net.labels: labels, net.rate: rate,
                             net.stop_request: interruption.signal_number or 0,
                             net.wants_histograms: bool(report.wants_histograms(step + 1))}, options, traced)
                        step += 1
                        report.step(step, loss, accuracy, rate, histograms, traced)
                        # Not after an epoch's last step: there validation comes first, and a resumed run would miss it.
                        if step % steps_per_epoch and (stop_signal() or report.checkpoint_is_due()):
                            save()
                if len(data.validation):
                    evaluation = Evaluate(sess, net.validation, data.validation, data, cluster)
                    report.evaluated("validation", step, evaluation)
                    if evaluation.accuracy >= sess.run(net.best_accuracy):  # of equals the one that saw more
                        sess.run(net.set_best, {net.new_best: evaluation.accuracy})
                        checkpoints.save_best(sess, step)  # before the newest, which knows of it
                if config.test_every_epoch:
                    report.evaluated("test", step, Evaluate(sess, net.test, data.test, data, cluster))
                report.epoch(epoch + 1)
                save()

            evaluation = Evaluate(sess, net.test, data.test, data, cluster)
            report.evaluated("test", step, evaluation)
            result = report.result(step, evaluation, net.parameters, config.shaping)
            cluster.leave(sess)
            return result


def trained_run(arguments=(), **overrides):
    """A run that was trained: its hyperparameters, its RunDirectory and what it knows of its data.

    Raises:
        UserError: bad hyperparameters; there is no such run, or it was trained with others than are given.
    """
    config = choose(arguments, **overrides)
    directory = RunDirectory(os.path.join(config.model_dir, config.run_name), {})
    trained_with = directory.read_json("settings.json")
    if trained_with is None:
        if config.dataset == "mnist" and config.digits_stand_in and "dataset" not in config.overridden:
            digits = choose(**dict(config.overridden, dataset="digits"))  # as in `prepare_data`
            if os.path.isdir(os.path.join(digits.model_dir, digits.run_name)):
                return trained_run(**dict(config.overridden, dataset="digits"))
        raise UserError("there is no trained run %s: set run_name to one of those in %s (%s), or leave mode out to "
                        "train it" % (directory.path, config.model_dir,
                                      ", ".join(runs_in(config.model_dir)) or "none"))
    facts = trained_with.pop("data", {})
    if "class_names" not in facts:
        raise UserError("%s was trained by an earlier version, which did not save what this needs: train it again, "
                        "under another run_name" % directory.path)
    trained = choose(**dict(config.overridden, **dict(trained_with, run_name=config.run_name)))
    for name in set(config.overridden) & set(trained_with):
        if getattr(trained, name) != getattr(config, name):
            raise UserError("%s was trained with %s=%s, not %s: leave that out, or name the run that is meant"
                            % (directory.path, name, settings.shown(getattr(trained, name)),
                               settings.shown(getattr(config, name))))
    return trained, directory, facts


def evaluate(arguments=(), **overrides):
    """Evaluates a run's checkpoint on the test images, precisely as training does; shows and writes what comes of it.

    Returns:
        the content of the run's evaluation.json.
    Raises:
        UserError: bad hyperparameters, no such run, no intact checkpoint, or other data than it was trained on.
    """
    config, directory, facts = trained_run(arguments, **overrides)
    data, config = prepare_data(config)
    if data.fingerprint() != facts:
        raise UserError("the images of %s are not those that %s was trained on: put these back, or look at others with "
                        "mode=predict" % (data.name, directory.path))
    cluster = Cluster(config.batch_size, config.devices)
    session = session_config(cluster, config.precision)
    with tf.Graph().as_default() as graph, tf.Session(config=session, graph=graph) as sess:
        images = tf.placeholder(tf.float32, (config.batch_size,) + data.image_shape, "images")
        labels = tf.placeholder(tf.int64, [config.batch_size], "labels")
        net = build_evaluation(images, labels, config, len(data.class_names), cluster)
        used = Checkpoints(directory).restore_for_use(sess, config.checkpoint)
        evaluation = Evaluate(sess, net, data.test, data)
    return report_evaluation(config, directory, used, evaluation, data)


def serving_graph(config, facts):
    """Builds, in the default graph, what a trained network makes of images as they are; in float32 in any case.

    Returns:
        placeholder uint8 [N, H, W, C]; class probabilities float32 [N, classes]; class names, string [classes].
    """
    images = tf.placeholder(tf.uint8, [None] + facts["image_shape"], "images")
    with tf.variable_scope("normalization"):  # by the training set's statistics, which the checkpoint has
        mean, deviation = (tf.get_variable(name, [facts["image_shape"][2]]) for name in ("mean", "deviation"))
    config = types.SimpleNamespace(**dict(vars(config), precision="float32"))
    logits = inference((tf.cast(images, tf.float32) - mean) / deviation, config, len(facts["class_names"]))
    return images, tf.nn.softmax(logits, name="probabilities"), tf.constant(facts["class_names"], name="class_names")


def predict(arguments=(), **overrides):
    """Shows what a run's network sees in image files.

    Returns:
        [{"image": path, "classes": [names, the most probable first], "probabilities": [of these]}].
    Raises:
        UserError: bad hyperparameters, no such run, no intact checkpoint; in the end, a file that is no image.
    """
    config, directory, facts = trained_run(arguments, **overrides)
    if not config.images:
        raise UserError("mode=predict looks at images: name files or folders, images=a.png,folder/")
    height, _, channels = facts["image_shape"]
    side = image_folder.stored_side(config.image_size, config.crop_area) if config.image_size else height
    files = [file for path in config.images for file in image_folder.files_under(path)]
    if not files:
        raise UserError("there are no files in %s" % ", ".join(config.images))
    if config.json:
        write_json(config.json, [], "json")  # now, before the time it takes
    answers = []
    with tf.Graph().as_default() as graph, tf.Session(config=session_config(), graph=graph) as sess:
        images, probabilities, _ = serving_graph(config, facts)
        say("by %s" % Checkpoints(directory).restore_for_use(sess, config.checkpoint))
        try:
            for file in files:
                try:
                    pixels = image_folder.centre_of(image_folder.read_image(file, side, channels), height)
                except Exception as error:  # of any kind, as its docstring says
                    problem = getattr(error, "strerror", None) or "no image: %s" % " ".join(str(error).split())
                    say("%s  skipped (%s)" % (file, problem))
                    continue
                found = sess.run(probabilities, {images: pixels[None]})[0]
                order = np.argsort(-found)
                answers.append({"image": file, "classes": [facts["class_names"][index] for index in order],
                                "probabilities": found[order].tolist()})
                say("%s  %s" % (file, "  ".join("%s %.2f%%" % (facts["class_names"][index], 100 * found[index])
                                                for index in order[:3])))
        finally:
            if config.json:
                write_json(config.json, answers, "json")
    if len(answers) < len(files):
        raise UserError("%d of %d files were skipped, as said above" % (len(files) - len(answers), len(files)))
    return answers


def export(arguments=(), **overrides):
    """Writes a run's network, from raw pixels to probabilities, as a SavedModel and as a frozen graph.

    Returns:
        (the path of the SavedModel, that of the frozen graph).
    Raises:
        UserError: bad hyperparameters, no such run, no intact checkpoint; they are there already, cannot be written.
    """
    config, directory, facts = trained_run(arguments, **overrides)
    with tf.Graph().as_default() as graph, tf.Session(config=session_config(), graph=graph) as sess:
        images, probabilities, class_names = serving_graph(config, facts)
        used = Checkpoints(directory).restore_for_use(sess, config.checkpoint)
        written = export_graph(sess, {"images": images}, {"probabilities": probabilities, "class_names": class_names},
                               os.path.join(directory.path, "export-%d" % step_of(used)))
    say("exported %s as %s (SavedModel) and %s (frozen graph)" % ((used,) + written))
    return written


MODES = {"train": train, "evaluate": evaluate, "predict": predict, "export": export}


def main(arguments):
    """Runs the program; returns its exit status."""
    trains = True
    try:
        if {"--help", "-h"} & set(arguments):
            config = choose([argument for argument in arguments if argument not in ("--help", "-h")])
            say(__doc__)
            say("Hyperparameters, with their values for dataset=%s:" % config.dataset)
            say(settings.help_text(sys.modules[__name__], vars(config)))
        else:
            chosen_mode = choose(arguments).mode
            trains = chosen_mode == "train"
            MODES[chosen_mode](arguments)
    except UserError as error:
        print("Densenet.py: %s" % error, file=sys.stderr)
        return 1
    except tf.errors.ResourceExhaustedError:
        print("Densenet.py: there is not enough memory: %s" % (
            "lower batch_size or growth_k" if trains else "close other programs"), file=sys.stderr)
        return 1
    except Stopped as stop:
        print("Densenet.py: %s" % stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:  # before the first step, or the second one
        print("Densenet.py: stopped at once%s" % (
            "; the same command goes on from the newest checkpoint" if trains else ""), file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = main(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C has nothing left to stop
    if status == 128 + signal.SIGINT:
        sys.stderr.flush()
        os._exit(status)  # at once: the interpreter's own end can abort in a thread that still prepares a batch
    sys.exit(status)
