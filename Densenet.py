"""DenseNet (Huang et al. 2017, arXiv 1608.06993) in TensorFlow 1.x style: a graph, a session, a loop.

Trained on MNIST for 8 minutes on two cores, it classifies 99.5% of the test images correctly (results: README.md).

    python Densenet.py                      train on MNIST; the same command resumes a run that was stopped
    python Densenet.py growth_k=24 seed=3   the same with other hyperparameters, as a run of its own
    python Densenet.py dataset=cifar10      train on CIFAR-10
    python Densenet.py mode=predict images=a.png,folder/    classify images with a trained network
    python Densenet.py --help               all hyperparameters: value, meaning, range
    tensorboard --logdir logs               curves, pictures and the graph

Shapes in comments: N images of a batch, H rows, W columns, C channels, k growth rate.
"""

import contextlib
import functools
import inspect
import itertools
import math
import signal
import sys
import types

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports: no traceback
import support.environment  # sets what TensorFlow reads when it is imported

import numpy as np
import tensorflow.compat.v1 as tf

import cifar10
import mnist_loader
from ops import (Average_pooling, Batch_Normalization, Concatenation, Drop_out, Global_Average_Pooling, Linear,
                 Max_Pooling, conv_layer)
from support import UserError, command_line, configuration, image_folder, modes, prediction
from support.augmentation import batches_of_steps
from support.batch_statistics import SharedStatistics, advance_moving_statistics
from support.data import class_weights_of
from support.download import Unavailable
from support.evaluation import Outputs, evaluate_split, outputs_of, views_of
from support.explanations import mean_over_views
from support.machine import PRECISIONS
from support.networks import NETWORKS, STEMS, pools_first, transition_width
from support.optimizers import optimizer_of, trained_variables
from support.prefetch import prefetched
from support.settings import (boolean, by_dataset, count_or_share, file_name, integer, integers, number, one_of,
                              pair_or_auto, path, paths, some_of)
from support.tensorboard import variables_in_histograms
from support.training_run import TrainingRun, build_recorded
from support.weight_average import advance_averages, averages_used
from support.workers import Cluster

# To add a data set: a function like `mnist_loader.prepare_data`, which returns a `support.data.DataSet`.
DATASETS = dict(mnist_loader.DATASETS, **cifar10.DATASETS, folder=image_folder.prepare_data)
SCHEDULES = ("constant", "steps", "cosine", "exponential")  # learning_rate() has their formulas

# ---- Hyperparameters: edit a value here, or give it for one run on the command line (growth_k=24) ----
# by_dataset(a, cifar=b, folder=c): a for MNIST and the rest, b for CIFAR-10 and CIFAR-100, c for your own images.
# A plain value is for all. A named network or an optimizer brings values, which edited and given ones replace.

mode: one_of(("train", "evaluate", "predict", "export")) = "train"  # all but train need a trained run, or weights

# Data
dataset: one_of(tuple(DATASETS)) = "mnist"  # what to train on; folder: your own images, in data_dir
data_dir: path(tensorflow=False) = "data"  # searched: data_dir/<dataset>, then data_dir; downloads go to the first
cache_dir: path(tensorflow=False) = "cache"  # decoded images of dataset=folder
digits_stand_in: boolean() = True  # without MNIST, train on the small digits in scikit-learn instead of stopping
validation_size: count_or_share(0, 1000000) = by_dataset(5000, digits=100, folder=0.1)  # training images held out
image_size: integer(8, 1024) = 64  # side in pixels to which images of dataset=folder are resized
augmentation: boolean() = True  # augment training images at random, by the nine settings from crop_area to cutout
crop_area: number(0.01, 1.0) = 1.0  # least share of an image that a random crop shows; for dataset=folder
shift: integer(0, 8) = by_dataset(2, cifar=3, folder=4)  # pixels along each axis
rotation: number(0.0, 45.0) = by_dataset(10.0, cifar=0.0, folder=0.0)  # degrees in either direction
scaling: number(0.0, 1.0) = 0.0  # each axis grows or shrinks by a factor of at most e^scaling
shear: number(0.0, 45.0) = 0.0  # degrees by which vertical lines are inclined, in either direction
elastic: number(0.0, 8.0) = 0.0  # pixels, standard deviation of a smooth random displacement
flip: boolean() = by_dataset(False, cifar=True, folder=True)  # left to right
alternate_flip: boolean() = by_dataset(False, cifar=True)  # mirror images in every second epoch, not at random
cutout: integer(0, 64) = by_dataset(0, cifar=8)  # side in pixels of a square that is hidden at a random place
pixel_range: pair_or_auto() = "auto"  # values that become black and white in grey images of more than 8 bits
truncated_images: boolean() = False  # use the readable part of truncated image files instead of skipping them
flip_average: boolean() = by_dataset(False, cifar=True, folder=True)  # test: average logits with the mirror image
shift_average: integer(0, 8) = by_dataset(0, cifar=1)  # test: average logits over 4 diagonal shifts by these pixels

# Network
network: one_of(("custom",) + tuple(NETWORKS)) = "custom"  # custom: as blocks to stem_channels say, below
blocks: integers(1, 256, most=8) = by_dataset((4, 4, 4), cifar=(2, 4, 4), folder=(2, 4, 4))  # layers per dense block
growth_k: integer(1, 512) = by_dataset(12, cifar=48, folder=32)  # growth rate k: feature maps that each layer adds
bottleneck: boolean() = by_dataset(True, folder=False)  # a 1x1 convolution to 4k before each 3x3 one
compression: number(0.01, 1.0) = 0.5  # share of its channels that a transition keeps, the paper's θ
transition_channels: integer(0, 65536) = 0  # channels of every transition; 0: by compression
transition_pooling: one_of(("average", "max")) = "average"  # the paper's: average
stem: one_of(tuple(STEMS)) = by_dataset("3x3+pool", folder="7x7s2+pool")  # convolution before the first block
stem_channels: integer(0, 4096) = by_dataset(16, cifar=0, folder=0)  # output channels of the stem; 0: 2k
dropout_rate: number(0.0, 0.95) = 0.0  # share of activations zeroed after each convolution but the first
norm_epsilon: number(1e-5, 0.1) = 1e-3  # ε of batch normalization, added to the variance

# What was learned before; see docs/fine-tuning.md
weights: path(optional=True, tensorflow=False) = ""  # start from: imagenet, a .h5 or .safetensors file, or another run
train_only: one_of(("all", "last_block", "head")) = "all"  # what is trained; last_block includes the classifier, head
head_rate: number(0.001, 1000.0) = 1.0  # learning rate of the classifier, as a multiple of that of the other layers

# Training
optimizer: one_of(("adam", "momentum", "sgd")) = "adam"  # momentum: the paper's, brings 300 epochs of batches of 64
init_learning_rate: number(1e-8, 100.0) = 5e-3  # the rate before any decay
schedule: one_of(SCHEDULES) = by_dataset("exponential", cifar="cosine", folder="cosine")  # of the rate
warmup: number(0.0, 0.9) = by_dataset(0.02, cifar=0.2, folder=0.2)  # share of the steps in which the rate rises from 0
epsilon: number(1e-12, 1.0) = 1e-8  # Adam's, added to the denominator
weight_decay: number(0.0, 1.0) = by_dataset(0.0, cifar=0.1, folder=0.1)  # Adam: decoupled (AdamW); momentum: L2
label_smoothing: number(0.0, 0.9) = by_dataset(0.0, cifar=0.1, folder=0.1)  # share of a label spread over all classes
ema_decay: number(0.0, 0.99999) = by_dataset(0.999, digits=0.0, folder=0.0)  # 0: weights are not averaged
class_weights: one_of(("none", "balanced")) = "none"  # balanced: the loss counts each class alike, however many images
best_by: one_of(("accuracy", "balanced_accuracy", "loss")) = "accuracy"  # on validation: chooses the best weights
batch_size: integer(1, 65536) = by_dataset(100, digits=50, cifar=128, folder=32)  # images in a step, of all devices
total_epochs: integer(1, 100000) = by_dataset(13, digits=30, cifar=42, folder=30)  # raise it to extend a finished run
# auto: bfloat16 where the processor multiplies it itself, else float32; a run keeps what it began with.
precision: one_of(("auto",) + PRECISIONS) = by_dataset("float32", cifar="auto", folder="auto")  # auto: bfloat16 if fast
memory_efficient: boolean() = False  # recompute activations in the backward pass to save memory
seed: integer(0, 2 ** 31 - 1) = 0  # of weights, order of images, augmentation and dropout

# Devices; several machines share a run through TF_CONFIG, see docs/distributed.md
devices: integer(0, 1024) = 0  # replicas in this process; 0: all GPUs; without one, two CPU replicas
sync_batch_norm: boolean() = False  # batch statistics of the whole batch instead of each replica's part
worker_timeout: number(1.0, 100000.0) = 60.0  # seconds of silence after which another worker is lost

# Modes after training
checkpoint: path() = "best"  # best: the best on validation, else the newest; or a checkpoint's path or name
formats: some_of(("saved_model", "frozen", "tflite", "onnx")) = ("saved_model", "frozen")  # what mode=export writes
export_dir: path() = "export"  # where mode=export writes: export_dir/<run>/<step>
images: paths() = ()  # what mode=predict classifies: image files and folders of them
json: path(optional=True, tensorflow=False) = ""  # a file for the answers of mode=predict
heatmaps: path(optional=True, tensorflow=False) = ""  # mode=predict: a folder for a heat map of each image
handwriting: boolean() = False  # mode=predict: make images of handwriting as MNIST's: white on black, cropped, centred

# What a run writes; paths are relative to where the command is run
log_dir: path() = "logs"  # TensorBoard's files
model_dir: path() = "model"  # checkpoints and results
run_name: file_name(optional=True) = ""  # empty: the data set and what was changed from its defaults
checkpoint_minutes: number(0.001, 100000.0) = 10.0  # save at least this often, and after each epoch
trace_step: integer(0, 10 ** 9) = 0  # a step whose operations are timed, for TensorBoard and chrome://tracing; 0: none
test_every_epoch: boolean() = False  # test after every epoch, for plotting only; do not tune on it

# What may change when a run is resumed; total_epochs then moves the end of the schedule. The rest identifies a run: a
# changed value starts a run of its own, named after the change, and a directory of a run with other values is refused.
CHANGEABLE = ("mode", "data_dir", "cache_dir", "digits_stand_in", "pixel_range", "truncated_images", "total_epochs",
              "memory_efficient", "devices", "worker_timeout", "checkpoint", "formats", "export_dir", "images", "json",
              "heatmaps", "handwriting", "log_dir", "model_dir", "run_name", "checkpoint_minutes", "trace_step",
              "test_every_epoch")
IDENTIFYING = tuple(name for name in __annotations__ if name not in CHANGEABLE)


class DenseNet:
    """The network. `model` is its output, logits [N, class_num]; global average pooling reads `features` [N, H, W, C]
    and gives `embedding` [N, C].

    Args:
        x: normalized images [N, H, W, C], floating point; activations are of its type.
        blocks: layers in each dense block; the last block is followed by the classifier.
        growth_k: growth rate k.
        training: a Python bool or a bool tensor.
        class_num: number of classes.
        bottleneck, compression, transition_channels, transition_pooling, stem, stem_channels, dropout_rate,
            norm_epsilon, train_only, memory_efficient: as the hyperparameters of these names.
        shared: a `support.batch_statistics.SharedStatistics`, by which the layers share batch statistics. None: each
            batch normalization computes its own.
    Raises:
        UserError: the images are too small for the network; it names the layer where they shrink to nothing.
    """

    def __init__(self, x, blocks, growth_k, training, *, class_num=10, bottleneck=True, compression=0.5,
                 transition_channels=0, transition_pooling="average", stem="3x3", stem_channels=0, dropout_rate=0.0,
                 norm_epsilon=1e-3, train_only="all", memory_efficient=False, shared=None):
        self.blocks, self.growth_k, self.class_num = tuple(blocks), growth_k, class_num
        self.bottleneck, self.dropout_rate = bottleneck, dropout_rate
        self.compression, self.transition_channels = compression, transition_channels
        self.transition_pooling, self.stem, self.stem_channels = transition_pooling, stem, stem_channels or 2 * growth_k
        self.norm_epsilon, self.memory_efficient, self.train_only = norm_epsilon, memory_efficient, train_only
        self._in_training = training, shared
        self.input_size = "%sx%s" % tuple(x.shape[1:3])
        self.model = self.Dense_net(x)

    def bottleneck_layer(self, x, scope):
        """A layer of a dense block, with or without the bottleneck, the paper's H: [N, H, W, C] -> [N, H, W, k]."""
        with tf.variable_scope(scope):
            if self.bottleneck:
                x = self._norm_relu(x, "batch1", self.memory_efficient)
                x = conv_layer(x, 4 * self.growth_k, kernel=1, layer_name="conv1")  # [N, H, W, 4k]
                x = self._drop_out(x, "drop1")
            x = self._norm_relu(x, "batch2", self.memory_efficient)
            x = conv_layer(x, self.growth_k, kernel=3, layer_name="conv2")  # [N, H, W, k]
            return self._drop_out(x, "drop2")

    def transition_layer(self, x, scope):
        """Between two dense blocks: [N, H, W, C] -> [N, H/2, W/2, ⌊θC⌋], or `transition_channels` instead of ⌊θC⌋."""
        with tf.variable_scope(scope):
            self._require_side(x, 2, scope)
            channels = transition_width(int(x.shape[-1]), self.compression, self.transition_channels)
            pooling = {"average": Average_pooling, "max": Max_Pooling}[self.transition_pooling]
            x = self._norm_relu(x, "batch1", self.memory_efficient)
            if pools_first(self.transition_pooling, self.dropout_rate):  # averages can: a quarter of the products
                return conv_layer(pooling(x, pool_size=2, stride=2), channels, kernel=1, layer_name="conv1")
            x = conv_layer(x, channels, kernel=1, layer_name="conv1")
            return pooling(self._drop_out(x, "drop1"), pool_size=2, stride=2)

    def dense_block(self, input_x, nb_layers, layer_name):
        """Each layer reads the block's input and all earlier outputs: [N, H, W, C] -> [N, H, W, C + nb_layers · k]."""
        with tf.variable_scope(layer_name):
            x = input_x
            for i in range(nb_layers):
                x = Concatenation([x, self.bottleneck_layer(x, scope="bottleN_%d" % i)], shared=self.shared)
            return x

    def Dense_net(self, input_x):
        """Stem, dense blocks with transitions between them, global average pooling, classifier."""
        self._frozen_unless(self.train_only == "all")
        kernel, stride, padding, normalized, pool_padding = STEMS[self.stem]
        x = conv_layer(input_x, self.stem_channels, kernel, stride, layer_name="conv0", padding=padding)
        if normalized:
            x = self._norm_relu(x, "batch0")
        if pool_padding:
            self._require_side(x, 3 if pool_padding == "VALID" else 1, "the pooling after conv0")
            x = Max_Pooling(x, pool_size=3, stride=2, padding=pool_padding)

        for i, nb_layers in enumerate(self.blocks[:-1]):
            x = self.dense_block(x, nb_layers, layer_name="dense_%d" % i)
            x = self.transition_layer(x, scope="trans_%d" % i)
        self._frozen_unless(self.train_only != "head")
        x = self.dense_block(x, self.blocks[-1], layer_name="dense_final")

        self.features = self._norm_relu(x, "linear_batch")
        self.embedding = Global_Average_Pooling(tf.cast(self.features, tf.float32))  # [N, C]
        return Linear(self.embedding, class_num=self.class_num)

    def _frozen_unless(self, trained):
        """The layers from here on are trained, or computed as in inference, so that their statistics stand still."""
        self.training, self.shared = self._in_training if trained else (False, None)

    def _norm_relu(self, x, scope, memory_efficient=False):
        return Batch_Normalization(x, self.training, scope, relu=True, epsilon=self.norm_epsilon, shared=self.shared,
                                   memory_efficient=memory_efficient)

    def _drop_out(self, x, scope):
        return Drop_out(x, self.dropout_rate, self.training, scope=scope,
                        replica_index=self.shared.replica.index if self.shared else 0)

    def _require_side(self, x, pool_size, scope):
        if min(int(x.shape[1]), int(x.shape[2])) < pool_size:
            raise UserError("the %s images shrink to 0 at %s: use a network with fewer blocks or a stem that shrinks "
                            "them less" % (self.input_size, scope))


def learning_rate(step, total_steps, config):
    """The rate of step `step` (from 0) of `total_steps`: a pure function, so that resuming needs no replay.

    steps: divided by 10 at 50% and 75% of the steps, the paper's section 4.2; cosine: one period of Loshchilov & Hutter
    2017 (arXiv 1608.03983); exponential: by the same factor each step, to a hundredth in the end.
    """
    warmup_steps = config.warmup * total_steps
    if step < warmup_steps:
        return config.init_learning_rate * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return config.init_learning_rate * {
        "constant": 1.0,
        "steps": 0.1 ** ((2 * step >= total_steps) + (4 * step >= 3 * total_steps)),
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "exponential": 0.01 ** progress,
    }[config.schedule]


def loss_of(logits, labels, smoothing=0.0, class_weights=None):
    """Each image's cross entropy [N]. `smoothing`: Szegedy et al. 2016 (arXiv 1512.00567), section 7."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * tf.reduce_mean(tf.nn.log_softmax(logits), 1)
    return losses if class_weights is None else losses * tf.gather(class_weights, labels)


def network_of(images, config, class_num, training, shared=None):
    """The DenseNet that the hyperparameters describe, on normalized images [N, H, W, C]."""
    named = {name: getattr(config, name) for name in inspect.signature(DenseNet).parameters if hasattr(config, name)}
    return DenseNet(tf.cast(images, config.precision), training=training, class_num=class_num, shared=shared, **named)


def inference(images, config, class_num, border=None):
    """The network after training, by the moving averages, on normalized images [N, H, W, C]: the DenseNet's Outputs,
    each the mean over the views of an image. `border`: as in `views_of`."""
    views = views_of(images, config.flip_average, config.shift_average, border)
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        net = network_of(tf.concat(views, 0), config, class_num, training=False)
    logits, embedding = (tf.add_n(tf.split(x, len(views))) / len(views) for x in (net.model, net.embedding))
    features = mean_over_views(net.features, len(views), config.flip_average)
    return Outputs(logits, features, embedding)


def build_evaluation(images, labels, config, class_num, border, cluster):
    """The part of the graph that `evaluate_split` runs: see `support.evaluation.outputs_of`."""
    parts = cluster.on_each_replica(lambda _, its_images: inference(its_images, config, class_num, border), images)
    with tf.name_scope("evaluation"):
        return outputs_of(images, labels, parts, loss_of)


def build_training(images, labels, rate, stop_request, config, data, cluster):
    """The training step: (operation, loss, accuracy, stop), the last three as means over all replicas.

    Each replica computes loss and gradients of its part of the batch; one optimizer step takes the mean gradients.
    `stop` is not 0 where any worker was asked to stop: so all workers stop after the same step.
    """
    optimizer = optimizer_of(config, rate)
    class_weights = class_weights_of(data, config.class_weights)
    variables, moving = [], []  # the same for every replica; set by of_replica

    def of_replica(replica, its_images, its_labels):
        shared = SharedStatistics(replica)
        logits = network_of(its_images, config, len(data.class_names), True, shared).model
        with tf.name_scope("loss"):
            cost = tf.reduce_mean(loss_of(logits, its_labels, config.label_smoothing, class_weights))
        with tf.name_scope("accuracy"):
            accuracy = tf.reduce_mean(tf.cast(tf.equal(tf.argmax(logits, 1), its_labels), tf.float32))
        gradients, variables[:] = zip(*optimizer.compute_gradients(
            cost, trained_variables(config.train_only), gate_gradients=tf.train.Optimizer.GATE_NONE))
        moving[:], mean, variance = shared.collected()
        return [cost, accuracy, stop_request, *gradients, mean, variance]

    cost, accuracy, stop, *gradients, mean, variance = cluster.mean(cluster.on_each_replica(
        of_replica, images, labels, alike=not config.dropout_rate))  # dropout has other masks in each replica
    with tf.name_scope("optimizer"):
        train = optimizer.apply_gradients(list(zip(gradients, variables)))
        with tf.control_dependencies([train]):  # counts each step, also those that float16's loss scaling skips
            train = tf.train.get_global_step().assign_add(1, read_value=False)
    with tf.name_scope("moving_statistics"):
        train = tf.group(train, *advance_moving_statistics(moving, mean, variance))
        averaged = [*variables, *(variable for each in moving for variable in (each.mean, each.variance))]
        train = advance_averages(train, averaged, config.ema_decay)
    return train, cost, accuracy, stop


@support.environment.no_garbage_collection()
def build_graph(data, config, cluster=None):
    """Builds placeholders, training step and evaluation in the default graph; returns its tensors by name. `cluster`:
    the processes and devices that train; None: one device."""
    cluster = cluster or Cluster(config.batch_size, devices=1)
    tf.set_random_seed(config.seed)  # ops.py derives initial weights and dropout masks from it
    batch_size = cluster.share.stop - cluster.share.start  # of this process
    class_num = len(data.class_names)
    images = tf.placeholder(tf.float32, (batch_size,) + data.image_shape, "images")  # [N, H, W, C]
    labels = tf.placeholder(tf.int64, [batch_size], "labels")
    rate = tf.placeholder(tf.float32, [], "learning_rate")
    stop_request = tf.placeholder_with_default(tf.constant(0.0), [], "stop_request")
    global_step = tf.train.get_or_create_global_step()
    train, cost, accuracy, stop = build_training(images, labels, rate, stop_request, config, data, cluster)
    histograms = variables_in_histograms()
    with tf.name_scope("inference"), averages_used():
        one_view = types.SimpleNamespace(**dict(vars(config), flip_average=False, shift_average=0))
        validation = test = build_evaluation(images, labels, one_view, class_num, None, cluster)
        if config.flip_average or config.shift_average:
            border = data.border if data.border.any() else None
            test = build_evaluation(images, labels, config, class_num, border, cluster)
    recorded = build_recorded(data.mean, data.deviation)
    cluster.build_agreement()
    return types.SimpleNamespace(
        images=images, labels=labels, rate=rate, stop_request=stop_request, global_step=global_step, train=train,
        cost=cost, accuracy=accuracy, stop=stop, histograms=histograms, validation=validation, test=test,
        recorded=recorded, initialize=tf.global_variables_initializer(),
        parameters=sum(int(np.prod(variable.shape.as_list())) for variable in tf.trainable_variables()))


def choose(arguments=(), **overrides):
    """The hyperparameters of a run, from the constants above and those given: see `support.configuration.choose`."""
    return configuration.choose(sys.modules[__name__], arguments, **overrides)


def prepare_data(config):
    """The data set of the run, and the run's hyperparameters: those of `digits` where that stands in for MNIST."""
    try:
        return DATASETS[config.dataset](config.data_dir, config.validation_size, **image_folder.options(config)), config
    except Unavailable as error:
        return prepare_data(configuration.stand_in(choose, config, error))


def train(arguments=(), **overrides):
    """Trains a run to its end, from its newest checkpoint where there is one, and tests it once. `arguments`:
    hyperparameters as on the command line; `overrides`: as values. Returns the content of the run's result.json; None
    in a worker that is not the chief.

    Raises:
        UserError: bad hyperparameters, data or run directory; a loss that is not finite.
        support.interruption.Stopped: Ctrl-C, SIGTERM or a like signal; the run is saved.
    """
    data, config = prepare_data(choose(arguments, caller="train", **overrides))
    with TrainingRun(config, data) as run:
        with tf.Graph().as_default(), tf.device(run.cluster.place):
            net = build_graph(data, config, run.cluster)
            with run.session(net) as sess:
                training_loop(sess, net, data, config, run)
                run.cluster.leave(sess)
    return run.result


def train_epoch(sess, net, batches, step, config, run):
    """Trains from step `step` to the end of its epoch; returns the step after it, and whether a worker must stop.
    Ctrl-C and SIGTERM set a flag (support/interruption.py); `run` looks at it after each step."""
    for images, labels in itertools.islice(batches, run.steps_per_epoch - step % run.steps_per_epoch):
        rate = learning_rate(step, run.total_steps, config)
        _, loss, accuracy, stop = sess.run(
            [net.train, net.cost, net.accuracy, net.stop],
            {net.images: images, net.labels: labels, net.rate: rate, net.stop_request: run.stop_request()},
            **run.trace_options(step + 1))
        step += 1
        run.step_done(step, loss, accuracy, rate)
        epoch_ended = step % run.steps_per_epoch == 0  # then validation comes before saving: resuming would skip it
        if not epoch_ended and run.must_save(stop):
            run.save(sess, step)
            run.end_if_asked(sess, step, stop)
    return step, stop


def training_loop(sess, net, data, config, run):
    """Trains from the step that the session holds to the last one, then tests; `run` reports and saves."""
    step = run.begin(sess)
    steps = batches_of_steps(step, run.total_steps, data, config, run.cluster.share)
    with contextlib.closing(prefetched(steps, waited=run.waited)) as batches:
        while step < run.total_steps:
            step, stop = train_epoch(sess, net, batches, step, config, run)
            if len(data.validation):
                run.evaluated(sess, "validation", step,
                              evaluate_split(sess, net.validation, data.validation, data, run.cluster))
            if config.test_every_epoch:
                run.evaluated(sess, "test", step, evaluate_split(sess, net.test, data.test, data, run.cluster))
            run.epoch_done(sess, step)
            run.save(sess, step)
            run.end_if_asked(sess, step, stop)
    if not run.finished:
        run.restore_best(sess)
        run.finish(sess, step, evaluate_split(sess, net.test, data.test, data, run.cluster, embed=True))


# The other modes, called like train(); they return evaluation.json's content, a list of answers, the paths written.
evaluate = functools.partial(modes.evaluate, choose, prepare_data, build_evaluation, caller="evaluate")
predict = functools.partial(prediction.predict, choose, inference, caller="predict")
export = functools.partial(modes.export, choose, prepare_data, inference, caller="export")


def main(arguments=(), **overrides):
    """Runs the mode that the hyperparameters choose; returns what the function of that name returns."""
    return globals()[choose(arguments, **overrides).mode](arguments, **overrides)


if __name__ == "__main__":
    command_line.run(sys.modules[__name__])
