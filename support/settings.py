"""How is a setting declared, checked, overridden and shown?

A setting is an annotated constant of a module. The annotation is the setting's type and range. The comment on the same
line is the description that `--help` shows. A value may depend on the data set:

    growth_k: integer(1, 512) = by_dataset(12, cifar=24)  # feature maps that each layer adds
"""

import difflib
import inspect
import math
import operator
import os
import re

from support import UserError


class ByDataset:
    """A value for each data set: see `by_dataset`."""

    def __init__(self, default, others):
        self.default = default
        self.others = others

    def value_for(self, dataset):
        """Returns the value for the longest matching prefix of the data set's name, else the default."""
        names = [name for name in self.others if dataset.startswith(name)]
        return self.others[max(names, key=len)] if names else self.default


def by_dataset(default, **others):
    """Declares a value that depends on the data set.

    Args:
        default: the value for MNIST, and for each data set that `others` does not name.
        others: {prefix of data set names: value}. The prefix `cifar` matches cifar10, cifar100 and cifar100_coarse.
    """
    return ByDataset(default, others)


class Kind:
    """A type with a range.

    `parse` converts a given text or value to the setting's value. For an invalid one it raises an exception that
    `check` turns into UserError. `str()` returns a description for the user.
    """

    def __init__(self, description, parse):
        self.description = description
        self.parse = parse

    def __str__(self):
        return self.description


def integer(low, high):
    """An integer from low to high, inclusive."""
    def parse(given):
        value = int(given) if isinstance(given, str) else operator.index(given)  # accepts NumPy integers, too
        if isinstance(given, bool) or not low <= value <= high:
            raise ValueError
        return value
    return Kind("an integer from %d to %d" % (low, high), parse)


def number(low, high):
    """A finite number from low to high, inclusive."""
    def parse(given):
        if isinstance(given, bool):
            raise ValueError
        value = float(given)
        if not low <= value <= high:  # the comparison is False for NaN
            raise ValueError
        return value
    return Kind("a number from %g to %g" % (low, high), parse)


def count_or_share(low, high):
    """An integer from low to high, or a share: a number above 0 and below 1."""
    count, share = integer(low, high), number(0.0, 1.0)

    def parse(given):
        value = share.parse(given) if isinstance(given, float) or "." in str(given) else count.parse(given)
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError
        return value
    return Kind("an integer from %d to %d, or a share between 0 and 1" % (low, high), parse)


def integers(low, high, most):
    """One to `most` integers from low to high, separated by commas."""
    one = integer(low, high)

    def parse(given):
        parts = given.strip("()").split(",") if isinstance(given, str) else given
        values = tuple(one.parse(part) for part in parts)
        if not 1 <= len(values) <= most:
            raise ValueError
        return values
    return Kind("1 to %d integers from %d to %d, separated by commas" % (most, low, high), parse)


def boolean():
    """True or False."""
    def parse(given):
        if isinstance(given, bool):
            return given
        return {"true": True, "false": False}[given.lower()]
    return Kind("True or False", parse)


def one_of(choices):
    """One of the names in `choices`."""
    def parse(given):
        if given not in choices:
            raise ValueError
        return given
    return Kind("one of " + ", ".join(choices), parse)


def paths():
    """Any number of paths of files or folders, separated by commas. ~ is the user's home folder."""
    def parse(given):
        parts = (given.split(",") if given else ()) if isinstance(given, str) else given
        if any("\0" in part or not part for part in parts):
            raise ValueError
        return tuple(os.path.expanduser(part) for part in parts)
    return Kind("paths, separated by commas", parse)


def path(optional=False):
    """A path of a file or folder. ~ is the user's home folder. `optional`: the path may be empty."""
    def parse(given):
        if optional and given == "":
            return given
        if not re.fullmatch(r"[^\0*?\[\]]+", given):  # TensorFlow treats *?[] as patterns
            raise ValueError
        given.encode("utf-8")  # TensorFlow does the same; characters that cannot be encoded fail here
        return os.path.expanduser(given)
    return Kind("a path without any of *?[]%s" % (", or empty" if optional else ""), parse)


def file_name(optional=False):
    """A name that can be one component of a path. `optional`: the name may be empty."""
    def parse(given):
        if optional and given == "":
            return given
        if not re.fullmatch(r"[\w=,+-][\w=,.+-]{,199}", given):
            raise ValueError
        return given
    return Kind("at most 200 letters, digits and _=,.+- not starting with a dot", parse)


def given_in(arguments, overrides, kinds):
    """Checks the settings that are given for one run.

    Args:
        arguments: settings as text, `name=value` or `--name=value`.
        overrides: settings as {name: value}. They take precedence over `arguments`.
        kinds: {name: Kind} of all settings.
    Returns:
        {name: value} of the given settings.
    Raises:
        UserError: a name is unknown, or a value is outside its setting's range.
    """
    given = {}
    for argument in arguments:
        name, equals, text = argument.partition("=")
        name = name[2:] if name.startswith("--") else name
        if not equals:
            raise UserError("'%s' is not a setting: write name=value (--help lists all names)" % argument)
        given[name] = text
    given.update(overrides)
    for name in given:
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=3) or sorted(kinds)
            raise UserError("there is no setting '%s': the nearest are %s (--help lists all)" % (name, ", ".join(near)))
    return {name: check(name, value, kinds) for name, value in given.items()}


def constants_of(module, dataset=""):
    """Checks the settings of a module; returns {name: value}, with the values for a data set.

    Raises:
        UserError: a value is outside its setting's range.
    """
    kinds = declared(module)
    values = {name: getattr(module, name) for name in kinds}
    return {name: check(name, value.value_for(dataset) if isinstance(value, ByDataset) else value, kinds)
            for name, value in values.items()}


def check(name, value, kinds):
    """Returns the value of a setting, converted by its Kind. Raises UserError if the value is invalid."""
    try:
        return kinds[name].parse(value)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        text = value if isinstance(value, str) and value.isprintable() else repr(value)
        raise UserError("%s=%s: %s must be %s" % (name, text[:60], name, kinds[name])) from None


def declared(module):
    """Returns {name: Kind} of a module's settings, in the order of the file."""
    return {name: kind for name, kind in module.__annotations__.items() if isinstance(kind, Kind)}


def help_text(module, values):
    """Returns two lines for each setting: name and value, then description and range."""
    meanings = dict(re.findall(r"^(\w+): .*?  # (.*)$", inspect.getsource(module), re.MULTILINE))
    lines = []
    for name, kind in declared(module).items():
        lines.append("  %s=%s" % (name, shown(values[name])))
        lines.append("        %s; %s" % (meanings.get(name, ""), kind))
    return "\n".join(lines)


def shown(value):
    """Returns the value as it is written on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(str(part) for part in value)
    if isinstance(value, float) and not math.isinf(value):
        return "%g" % value if float("%g" % value) == value else repr(value)
    return str(value)
