"""Which optimizers are there, and which settings does each bring along?"""

import tensorflow.compat.v1 as tf
from tensorflow.python.training import optimizer as tensorflow_optimizer

from support.variables import companions, move, update

# The settings that `optimizer=NAME` brings. They replace the data set's values; given and edited settings replace them.
RECIPES = {
    "adam": {},
    # Momentum, not Nesterov's, with its usual rate and L2 decay; the rest stays that of the data set.
    "sgd": dict(init_learning_rate=0.1, weight_decay=1e-4),
    # The recipe of the paper's section 4.2; recipe_of() adds what depends on the images
    "momentum": dict(init_learning_rate=0.1, schedule="steps", warmup=0.0, weight_decay=1e-4, label_smoothing=0.0,
                     flip_average=False, shift_average=0, batch_size=64, total_epochs=300, precision="float32",
                     ema_decay=0.0, alternate_flip=False, cutout=0),
}


# What a run that starts from `weights` brings, by its optimizer.
_FEW_IMAGES = dict(schedule="cosine", warmup=0.1, head_rate=3.0, batch_size=16, total_epochs=15, ema_decay=0.0,
                   alternate_flip=False)
FINE_TUNING = {
    "adam": dict(_FEW_IMAGES, init_learning_rate=1e-3),
    "sgd": dict(_FEW_IMAGES, init_learning_rate=0.005),
    "momentum": dict(_FEW_IMAGES, init_learning_rate=0.005),
}


def recipe_of(optimizer, augmentation, dataset):
    """The settings that `optimizer=NAME` brings, {name: value}.

    Args:
        augmentation: whether the run augments its images.
        dataset: the name of its data set.
    """
    recipe = RECIPES[optimizer]
    if optimizer == "momentum" and not augmentation:
        return dict(recipe, dropout_rate=0.2)  # section 4.2, last paragraph
    if optimizer == "momentum" and dataset.startswith("cifar"):
        return dict(recipe, shift=4)  # section 4.1; half of the images are mirrored, as by default
    return recipe


# The variables that `train_only` trains, by how their names begin.
TRAINED = {"all": "", "last_block": ("dense_final/", "linear_batch/", "linear/"), "head": "linear/"}


def trained_variables(train_only):
    """The variables of the default graph that are trained; the others get no gradient, no slot and no decay."""
    return [variable for variable in tf.trainable_variables() if variable.op.name.startswith(TRAINED[train_only])]


class _MadeTogether:
    """Makes the slots of all variables at once, with the names that TensorFlow gives them one by one, and the updates.

    The learning rate of the classifier is `head_rate` times that of the other variables.
    """

    head_rate = 1.0
    slots = {}  # {name of a slot: what follows the name of a variable in that of its slot}
    operation = ""  # that updates a variable. It takes the variable, its slots, and what `_inputs` returns.
    attributes = {}  # of the operation, {name: AttrValue}

    def rate_of(self, variable, rate):
        """The rate of a variable, where that of the others is `rate`."""
        return rate * self.head_rate if _is_of_head(variable) and self.head_rate != 1 else rate

    def _create_slots(self, variables):
        for slot, suffix in self.slots.items():
            keys = [tensorflow_optimizer._var_key(variable) for variable in variables]
            self._slot_dict(slot).update(zip(keys, companions(variables, suffix)))
        super()._create_slots(variables)  # finds these, and makes what else the optimizer has

    def _prepare(self):
        super()._prepare()
        self._waiting = []  # (gradient, variable)

    def _resource_apply_dense(self, gradient, variable):  # for each variable, between `_prepare` and `_finish`
        self._waiting.append((gradient, variable))

    def _finish(self, _, name):
        inputs = [[variable.handle] + [self.get_slot(variable, slot).handle for slot in self.slots] +
                  self._inputs(gradient, variable) for gradient, variable in self._waiting]
        variables = [variable for _, variable in self._waiting]
        return super()._finish(update(self.operation, variables, inputs, **self.attributes), name)


def _is_of_head(variable):
    return variable.op.name.startswith(TRAINED["head"])


class AdamW(_MadeTogether, tf.train.AdamOptimizer):
    """Adam with decoupled weight decay, Loshchilov & Hutter 2019 (arXiv 1711.05101), algorithm 2."""

    slots = {"m": "/Adam", "v": "/Adam_1"}
    operation = "ResourceApplyAdam"

    def __init__(self, rate, epsilon, weight_decay, head_rate=1.0):
        super().__init__(rate, epsilon=epsilon)
        self._rate, self._weight_decay, self.head_rate = rate, weight_decay, head_rate

    def apply_gradients(self, gradients, global_step=None, name=None):
        """As in `tf.train.Optimizer`; `gradients`: [(gradient, variable)], all of which decay."""
        decays = []
        if self._weight_decay:
            variables = [variable for _, variable in gradients]
            # The decay must follow the gradients, which are of the weights before it. One group for all of them: if
            # each decay waited for each gradient, the dependencies would grow with the square of the variables.
            with tf.control_dependencies([tf.group(*(gradient for gradient, _ in gradients))]):
                share = self._rate * self._weight_decay
                decays = move(variables, [self.rate_of(variable, self._rate) * self._weight_decay
                                          if _is_of_head(variable) else share for variable in variables])
        with tf.control_dependencies([tf.group(*decays)]):
            return super().apply_gradients(gradients, global_step, name)

    def _prepare(self):
        super()._prepare()
        # Read after the decays, as `apply_gradients` asks for: so the updates, which take them, come after these, too.
        self._powers = [power.read_value() for power in self._get_beta_accumulators()]

    def _inputs(self, gradient, variable):
        return self._powers + [self.rate_of(variable, self._lr_t), self._beta1_t, self._beta2_t, self._epsilon_t,
                               gradient]


class MomentumL2(_MadeTogether, tf.train.MomentumOptimizer):
    """Stochastic gradient descent with momentum 0.9 and L2 weight decay.

    g is the gradient with the decay's part, v ← 0.9 v + g. A step is −rate · v, or with `nesterov`, as in the paper's
    section 4.2, −rate · (g + 0.9 v).
    """

    slots = {"momentum": "/Momentum"}
    operation = "ResourceApplyMomentum"

    def __init__(self, rate, weight_decay, nesterov, head_rate=1.0):
        super().__init__(rate, 0.9, use_nesterov=nesterov)
        self._weight_decay, self.head_rate = weight_decay, head_rate
        self.attributes = dict(use_nesterov=tf.AttrValue(b=nesterov))

    def apply_gradients(self, gradients, global_step=None, name=None):
        """As in `tf.train.Optimizer`; `gradients`: [(gradient, variable)], all of which decay."""
        if self._weight_decay:
            gradients = [(gradient + self._weight_decay * variable, variable) for gradient, variable in gradients]
        return super().apply_gradients(gradients, global_step, name)

    def _inputs(self, gradient, variable):
        return [self.rate_of(variable, self._learning_rate_tensor), gradient, self._momentum_tensor]


def optimizer_of(config, rate):
    """The optimizer of a run.

    Args:
        config: has `optimizer`, `epsilon`, `weight_decay`, `head_rate` and `precision`.
        rate: the learning rate, a float32 scalar tensor.
    """
    if config.optimizer == "adam":
        optimizer = AdamW(rate, config.epsilon, config.weight_decay, config.head_rate)
    else:
        optimizer = MomentumL2(rate, config.weight_decay, config.optimizer == "momentum", config.head_rate)
    if config.precision == "float16":  # scales the loss, as small gradients would be 0 (Micikevicius et al. 2018,
        # arXiv 1710.03740)
        optimizer = tf.train.experimental.MixedPrecisionLossScaleOptimizer(optimizer, "dynamic")
    return optimizer
