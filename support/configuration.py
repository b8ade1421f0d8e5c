"""Which value does each setting of a run have, where does it come from, and what is the run called?

From the weakest to the strongest: the constant's line for the data set, what a named network brings, what an optimizer
brings, an edited constant, the command line. A constant counts as edited if it is not the one in shipped_defaults.json;
tests/record.py writes that file from the constants before a version is published.
"""

import hashlib
import json
import os
import types

from support import UserError, settings
from support.networks import NETWORKS
from support.optimizers import recipe_of

LONGEST_NAME = 200  # characters of a run's name; file systems take 255 bytes
FOLDER_ONLY = ("image_size", "crop_area")  # settings without effect on data sets whose images have their own size

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "shipped_defaults.json")) as _file:
    SHIPPED = json.load(_file)


def choose(module, arguments=(), **overrides):
    """The settings of a run.

    Args:
        module: has the constants, and in IDENTIFYING the names of those that identify a run.
        arguments: settings as on the command line.
        overrides: settings as values.
    Returns:
        a namespace of all settings, with `given`, {name: value} of the arguments and overrides, `identifying`, the
        names of the settings that identify the run, and `origins`, {name: where its value comes from} of the values
        that are not those of their constants.
    Raises:
        UserError: an unknown name or a bad value.
    """
    kinds = settings.declared(module)
    given = settings.given_in(arguments, overrides, kinds)
    dataset = given.get("dataset") or settings.check("dataset", module.dataset, kinds)
    constants = settings.constants_of(module, dataset)
    shipped = {name: settings.check(name, value, kinds) for name, value in SHIPPED[dataset].items()}
    own = {name: value for name, value in constants.items() if name in shipped and value != shipped[name]}
    own.update(given)

    network, optimizer = own.get("network", shipped["network"]), own.get("optimizer", shipped["optimizer"])
    sources = [("network=" + network, NETWORKS.get(network, {})),  # custom: brings nothing
               ("optimizer=" + optimizer, recipe_of(optimizer, own.get("augmentation", shipped["augmentation"])))]
    brought = {name: (settings.check(name, value, kinds), source)
               for source, values in sources for name, value in values.items()}
    usual = dict(shipped, **{name: value for name, (value, _) in brought.items()})
    values = dict(constants, **{name: value for name, (value, _) in brought.items() if name not in own})
    values.update(own)
    origins = {name: source for name, (_, source) in brought.items() if name not in own}
    origins.update(dict.fromkeys(given, "given"))

    if dataset != "folder" and ("image_size" in own or own.get("crop_area", 1.0) != 1.0):
        raise UserError("image_size and crop_area belong to dataset=folder, not to %s: leave them out" % dataset)
    identifying = [name for name in module.IDENTIFYING if dataset == "folder" or name not in FOLDER_ONLY]
    changed = ["%s=%s" % (name, settings.shown(values[name])) for name in identifying
               if name in own and name != "dataset" and values[name] != usual[name]]
    values["run_name"] = values["run_name"] or _shortened("-".join([dataset] + changed))
    return types.SimpleNamespace(given=given, origins=origins, identifying=identifying, **values)


def identity(config):
    """{name: value} of the settings that identify the run."""
    return {name: getattr(config, name) for name in config.identifying}


def of_earlier_versions(recorded):
    """The identifying settings of a run as this version compares them, from settings.json of any version.

    Earlier versions wrote null for what was derived or did not apply. The network's name is left out: its parts count.
    """
    instead = {"validation_size": 0.1, "transition_channels": 0, "stem_channels": 0}
    found = {name: instead.get(name) if value is None else value for name, value in recorded.items()}
    left_out = ("network",) + (() if found.get("dataset") == "folder" else FOLDER_ONLY)
    return {name: value for name, value in found.items() if name not in left_out}


def _shortened(name):
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return "%s-%s" % (name[:LONGEST_NAME - 13], digest)
