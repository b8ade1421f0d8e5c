"""Which value does each setting of a run have, where does it come from, and what is the run called?

From the weakest to the strongest: the constant's line for the data set, what `weights` bring of their network, what a
named network brings, what an optimizer brings, no views of test images that training does not have, the recipe for
fine-tuning, an edited constant, the command line. A constant counts as edited if it is not the one in
shipped_defaults.json; tests/record.py writes that file from the constants before a version is published.
"""

import hashlib
import json
import os
import re
import types

from support import UserError, pretrained, say, settings
from support.networks import NETWORKS
from support.optimizers import FINE_TUNING, recipe_of
from support.run_directory import FOLDER_ONLY, RunDirectory

LONGEST_NAME = 200  # bytes of a run's name; file systems take 255

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "shipped_defaults.json")) as _file:
    SHIPPED = json.load(_file)


# The settings that not every mode uses: {name: (the modes that use it, why the others do without)}. The rest describes
# the training, and repeated in the other modes, it selects the run.
USED_BY = {
    "checkpoint": (("evaluate", "predict", "export"), "training resumes its own run by itself, and weights= "
                   "starts a run from those of another"),
    "images": (("predict",), "the images to train or test on are those in data_dir"),
    "json": (("predict",), "the results of the other modes are in the run's directory"),
    "heatmaps": (("predict",), "they show what the answers of mode=predict are due to"),
    "handwriting": (("predict",), "it changes the images that are to be classified"),
    "formats": (("export",), "they are the files that an export consists of"),
    "export_dir": (("export",), "nothing else is written there"),
}

# (what answers are averaged over, the change of training images that shows such views, what is averaged without it).
VIEWS = (("flip_average", "flip", False), ("shift_average", "shift", 0))

# Names of the field that are no settings here: what they are called here, or what is done instead.
HINTS = {settings.squashed(name): here for here, names in {
    "init_learning_rate": "lr learning_rate base_lr initial_lr init_lr start_lr lr0 alpha eta rate",
    "total_epochs": "epoch epochs n_epoch n_epochs nb_epoch nb_epochs num_epoch num_epochs max_epoch max_epochs "
                    "train_epochs num_train_epochs training_epochs",
    "batch_size": "batch bs batches mini_batch mini_batch_size train_batch_size",
    "weight_decay": "wd l2 l2_reg reg lambda decay regularization l2_regularization",
    "schedule": "sched scheduler lr_schedule lr_scheduler lr_policy lr_decay",
    "optimizer": "opt optim optimiser",
    "epsilon": "eps adam_epsilon adam_eps",
    "label_smoothing": "smoothing label_smooth",
    "seed": "random_seed manual_seed rng_seed random_state",
    "precision": "dtype",
    "memory_efficient": "efficient checkpointing gradient_checkpointing grad_checkpointing",
    "growth_k": "k growth growth_rate",
    "compression": "theta reduction compression_rate compression_factor",
    "blocks": "block_config block_layers layers_per_block",
    "dropout_rate": "dropout drop drop_rate dropout_prob",
    "stem_channels": "init_features num_init_features init_channels init_filters nb_filter",
    "network": "model arch architecture net backbone model_name model_type",
    "dataset": "dataset_name",
    "data_dir": "data data_path data_root dataset_dir dataset_path dataset_root root root_dir train_dir input_dir",
    "validation_size": "val_size valid_size val_split valid_split validation_split val_ratio val_fraction",
    "image_size": "img_size imgsz size input_size crop_size resize resolution",
    "augmentation": "augment aug data_augmentation data_aug",
    "crop_area": "crop random_crop random_resized_crop",
    "rotation": "rotate degrees random_rotation",
    "flip": "hflip horizontal_flip random_flip",
    "scaling": "scale zoom zoom_range random_scale",
    "shear": "shear_range",
    "elastic": "elastic_transform elastic_distortion",
    "ema_decay": "ema model_ema ema_rate polyak swa weight_average average_decay",
    "formats": "format export_format export_formats",
    "export_dir": "export_path",
    "cutout": "random_erasing cutout_size cutout_length",
    "log_dir": "logs log_path tensorboard tensorboard_dir tb_dir summary_dir",
    "model_dir": "save_dir save_path output_dir out_dir checkpoint_dir ckpt_dir models_dir work_dir results_dir",
    "run_name": "name exp exp_name experiment experiment_name run tag",
    "checkpoint": "ckpt ckpt_path checkpoint_path restore load model_path model_file snapshot",
    "images": "image img input inputs file files image_path image_file",
    "json": "output out output_file out_file predictions",
    "sync_batch_norm": "sync_bn",
    "keep_prob is 1 - dropout_rate here, write dropout_rate=0.2 for keep_prob=0.8": "keep_prob keep dropout_keep_prob",
    "network=NAME sets the depth, as in network=densenet_121, or blocks=6,12,24,16 the layers of each dense block":
        "depth layers n_layers num_layers nb_layers",
    "devices=2 is a number of GPUs, and the environment variable CUDA_VISIBLE_DEVICES=0,1 chooses them":
        "gpu gpus n_gpu n_gpus num_gpus gpu_id gpu_ids device num_devices",
    "GPUs are used where TensorFlow finds them, unless the environment variable CUDA_VISIBLE_DEVICES is empty":
        "cuda no_cuda use_cuda use_gpu cpu",
    "write precision=bfloat16 or precision=float16": "amp fp16 bf16 half mixed mixed_precision use_amp",
    "momentum is 0.9 in optimizer=sgd and, as Nesterov's, in optimizer=momentum": "momentum",
    "schedule=steps divides the rate by 10 at 50% and 75% of the steps": "milestones gamma step_size lr_step lr_steps",
    "warmup=0.1 is a share of the steps": "warmup_epochs warmup_steps",
    "training is measured in epochs, total_epochs": "steps max_steps num_steps train_steps iterations max_iter",
    "classes, channels and normalization are found in the data":
        "num_classes n_classes nb_classes class_num num_class classes channels in_channels mean std",
    "the same command again resumes a run that was stopped, and a larger total_epochs extends a finished one":
        "resume continue restart resume_from start_epoch",
    "weights=imagenet starts from published weights, and weights=FILE or weights=RUN from others":
        "pretrained fine_tune pretrained_weights init_weights transfer pretrained_model",
    "train_only": "freeze frozen trainable freeze_backbone freeze_layers",
    "class_weights": "class_weight balanced balance weighted",
    "norm_epsilon": "bn_eps bn_epsilon batch_norm_epsilon norm_eps",
    "heatmaps": "heatmap cam grad_cam saliency",
    "best_by": "monitor metric best_metric",
    "head_rate": "head_lr lr_mult classifier_lr",
    "batches are prepared by themselves during the steps, and several machines share a run through TF_CONFIG":
        "workers num_workers n_workers threads world_size rank local_rank",
    "training images are shuffled anew in each epoch": "shuffle",
    "Adam's β1 and β2 are 0.9 and 0.999": "beta beta1 beta2 betas adam_beta1 adam_beta2",
    "gradients are not clipped": "clip grad_clip clipnorm clipvalue max_grad_norm gradient_clipping",
    "images have the channels of the data set, dataset=folder has three": "grayscale greyscale gray color_mode rgb",
    "a line is printed for each epoch, and TensorBoard gets a point every 50 steps, or every shorter epoch":
        "verbose print_freq log_interval log_every log_freq print_every display_step quiet",
    "settings are given on the command line, or edited at the top of Densenet.py": "config cfg config_file",
    "the checkpoint that is best on validation (best_by) is kept and used": "patience early_stopping save_best",
    "checkpoint_minutes=10 saves every 10 minutes, and each epoch is saved": "save_every save_freq save_interval",
}.items() for name in names.split()}


def choose(module, arguments=(), caller=None, **overrides):
    """The settings of a run.

    Args:
        module: has the constants, and in IDENTIFYING the names of those that identify a run.
        arguments: settings as on the command line.
        caller: the mode whose function in Densenet.py asks; None: the mode is that of the settings.
        overrides: settings as values.
    Returns:
        a namespace of all settings, with
        `given`: {name: value} of the arguments and overrides, and of a mode that the caller sets,
        `edited`: the names of the settings that are given, or whose constant is not the shipped one,
        `identifying`: the names of the settings that identify the run,
        `origins`: {name: where its value comes from} of the values that are not those of their constants,
        `identities`: {name: what identifies its value}, where that is not the value,
        `starting_point`: the `support.pretrained.StartingPoint` of `weights`; None without weights,
        `earlier_run_name`: how earlier versions named this run of dataset=folder; None elsewhere and if it has a name.
    Raises:
        UserError: an unknown name, a bad value, or a setting that the mode or the data set does not use.
    """
    kinds = settings.declared(module)
    _check_lines(module, kinds)
    given = settings.given_in(arguments, overrides, kinds, HINTS)
    usual_mode = settings.check("mode", module.mode, kinds)
    mode = given.get("mode", caller or usual_mode)
    _check_mode(given, mode, caller)
    if mode != usual_mode:
        given["mode"] = mode
    dataset = given.get("dataset") or settings.check("dataset", module.dataset, kinds)
    constants = settings.constants_of(module, dataset)
    start = _starting_point(dict(constants, **given))
    if start and not start.run and mode != "train" and "dataset" not in given:
        dataset = "folder"  # published weights are for photos
        constants = settings.constants_of(module, dataset)
    shipped = {name: settings.check(name, value, kinds) for name, value in SHIPPED[dataset].items()}
    own = dict(_edited(module, constants, shipped), **given)

    brought = {name: (settings.check(name, value, kinds), source)
               for source, values in _sources(dict(shipped, **own), start, dataset) for name, value in values.items()}
    usual = dict(shipped, **{name: value for name, (value, _) in brought.items()})
    values = dict(constants, **{name: value for name, (value, _) in brought.items() if name not in own})
    values.update(own)
    origins = {name: source for name, (_, source) in brought.items() if name not in own}
    origins.update(dict.fromkeys(given, "given"))

    if dataset != "folder":
        _check_no_folder_settings(given, dataset, mode)
    identifying = [name for name in module.IDENTIFYING if dataset == "folder" or name not in FOLDER_ONLY]
    identities = {"weights": start.identity if start else ""}
    changed = ["%s=%s" % (name, settings.shown(identities.get(name, values[name]))) for name in identifying
               if name in own and name != "dataset" and values[name] != usual[name]]
    earlier = None
    if not values["run_name"]:
        first = _name_of_folder(values["data_dir"]) if dataset == "folder" else dataset
        values["run_name"] = _shortened("-".join([first] + changed))
        earlier = _shortened("-".join([dataset] + changed)) if dataset == "folder" else None
    values.update(_brought_before(values, origins, identities["weights"]))
    return types.SimpleNamespace(given=given, edited=frozenset(own), origins=origins, identifying=identifying,
                                 identities=identities, starting_point=start, earlier_run_name=earlier, **values)


def _edited(module, constants, shipped):
    """{name: value} of the constants that are not the shipped ones.

    A constant that has one value for all data sets, where the shipped values differ, is edited whatever its value.
    """
    def is_made_plain(name):
        return not isinstance(getattr(module, name), settings.ByDataset) and any(
            values[name] != SHIPPED["mnist"][name] for values in SHIPPED.values())

    return {name: value for name, value in constants.items()
            if name in shipped and (value != shipped[name] or is_made_plain(name))}


def _check_lines(module, kinds):
    """Raises UserError if a constant has lost its type by an edit, or has a value for a data set that there is not."""
    datasets = kinds["dataset"].choices if "dataset" in kinds else ()
    for name in SHIPPED["mnist"]:
        if name not in kinds:
            raise UserError("the line of %s in Densenet.py has lost the type between its name and =: put the line back "
                            "as it was, and change the value alone" % name)
        for prefix in getattr(getattr(module, name), "others", ()):
            if not any(settings.ByDataset.fits(prefix, dataset) for dataset in datasets):
                raise UserError("%s in Densenet.py has a value for %s, and no data set is called so: they are %s"
                                % (name, prefix, ", ".join(datasets)))


def _brought_before(values, origins, weights):
    """{name: value} of what the weights brought to this run when it began: earlier versions had other values."""
    brought = [name for name in ("image_size", "crop_area") if origins.get(name) == "weights"]
    if not brought:
        return {}
    run = RunDirectory(os.path.join(values["model_dir"], values["run_name"]), {}).read_json("settings.json") or {}
    return {name: run[name] for name in brought if run.get("weights") == weights and name in run}


def _starting_point(values):
    """The `support.pretrained.StartingPoint` that the setting `weights` names; None if it is empty."""
    if not values["weights"]:
        return None
    return pretrained.look_up(values["weights"], values["model_dir"], values["network"])


def _sources(own, start, dataset):
    """[(where values come from, {name: value})], from the weakest to the strongest.

    Args:
        own: {name: value} of the data set's shipped values, and those given or edited instead.
        start: see `_starting_point`.
        dataset: the name of the data set.
    """
    network, optimizer = own["network"], own["optimizer"]
    if start and network == "custom":
        network = start.settings.get("network", network)
    sources = [("network=" + network, NETWORKS.get(network, {})),  # custom: brings nothing
               ("optimizer=" + optimizer, recipe_of(optimizer, own["augmentation"], dataset)),
               ("no such views in training", {view: off for view, change, off in VIEWS
                                              if own[view] and not (own["augmentation"] and own[change])})]
    if start:
        sources = [("weights", start.settings)] + sources + [("weights", FINE_TUNING[optimizer])]
    return sources


def _check_mode(given, mode, caller):
    """Raises UserError if the caller is the function of another mode, or if a given setting is not used in the mode."""
    if caller not in (None, mode):
        raise UserError("%s was called with mode=%s: call Densenet.%s, or Densenet.main, which runs any mode"
                        % (caller, mode, mode))
    for name, (modes, instead) in USED_BY.items():
        if given.get(name) and mode not in modes:  # an empty value asks for nothing
            raise UserError("%s belongs to mode=%s, not to mode=%s: leave it out, as %s"
                            % (name, ", ".join(modes), mode, instead))


def _check_no_folder_settings(given, dataset, mode):
    """Raises UserError if what only image files need is given for another data set.

    The arguments are as in `choose`. Prediction reads image files with every run.
    """
    if "image_size" in given or given.get("crop_area", 1.0) != 1.0:
        raise UserError("image_size and crop_area belong to dataset=folder, not to %s: leave them out" % dataset)
    if mode == "train" and (given.get("pixel_range", "auto") != "auto" or given.get("truncated_images")):
        raise UserError("pixel_range and truncated_images are for image files, dataset=folder, not for %s: leave them "
                        "out" % dataset)


def _name_of_folder(data_dir):
    """What a run on the images in a folder is named after. Never the name of another data set's run."""
    name = re.sub(r"[^\w+-]", "_", os.path.basename(os.path.abspath(data_dir))) or "root"
    return "folder-" + name if name.lower() in SHIPPED else name


def stand_in(choose, config, error):
    """The settings of a run on the small digits, which stand in for MNIST where that is not to be had.

    Args:
        choose: `Densenet.choose`.
        config: the settings of the run that cannot have its data.
        error: the `support.download.Unavailable` that says why.
    Raises:
        Unavailable: the error, where data or folder were asked for, or `digits_stand_in` is off.
    """
    if config.dataset != "mnist" or not config.digits_stand_in or {"dataset", "data_dir"} & set(config.given):
        raise error
    say("%s. Training on scikit-learn's small digits instead (digits_stand_in=False to stop here)." % error)
    config = choose(**dict(config.given, dataset="digits"))
    config.origins["dataset"] = "digits_stand_in"
    return config


def identity(config):
    """{name: value} of the settings that identify the run."""
    return {name: config.identities.get(name, getattr(config, name)) for name in config.identifying}


def _shortened(name):
    """The name in at most LONGEST_NAME bytes, still another one for another name."""
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    return "%s-%s" % (encoded[:LONGEST_NAME - 13].decode(errors="ignore"), hashlib.sha256(encoded).hexdigest()[:12])
