"""Hyperparameters: constants at the top of a module, each with a declared type and range, overridable for one run.

A setting is an annotated constant; the comment on its line is its meaning, which `--help` shows:

    growth_k: integer(1, 1024) = 12  # feature maps that each layer adds
"""

import difflib
import inspect
import math
import operator
import os
import re

from support import UserError


class Kind:
    """A type with a range: `parse` makes a value of what was given or raises ValueError; `str()` describes it."""

    def __init__(self, description, parse):
        self.description = description
        self.parse = parse

    def __str__(self):
        return self.description


def integer(low, high):
    """An integer from low to high, both included."""
    def parse(given):
        value = int(given) if isinstance(given, str) else operator.index(given)  # NumPy's integers are welcome
        if isinstance(given, bool) or not low <= value <= high:
            raise ValueError
        return value
    return Kind("an integer from %d to %d" % (low, high), parse)


def number(low, high):
    """A finite number from low to high, both included."""
    def parse(given):
        if isinstance(given, bool):
            raise ValueError
        value = float(given)
        if not low <= value <= high:  # false for NaN, too
            raise ValueError
        return value
    return Kind("a number from %g to %g" % (low, high), parse)


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
    """One of some names."""
    def parse(given):
        if given not in choices:
            raise ValueError
        return given
    return Kind("one of " + ", ".join(choices), parse)


def paths():
    """Paths, separated by commas, of files or folders; ~ is the user's home."""
    def parse(given):
        parts = given.split(",") if isinstance(given, str) else given
        if not parts or any("\0" in part or not part for part in parts):
            raise ValueError
        return tuple(os.path.expanduser(part) for part in parts)
    return Kind("paths, separated by commas", parse)


def path():
    """A path, of a folder for instance; ~ is the user's home."""
    def parse(given):
        if not re.fullmatch(r"[^\0*?\[\]]+", given):  # TensorFlow takes the others for patterns
            raise ValueError
        given.encode("utf-8")  # as TensorFlow does; letters that the locale cannot read would fail there
        return os.path.expanduser(given)
    return Kind("a path without any of *?[]", parse)


def file_name():
    """A name that can stand in a path as one part of it."""
    def parse(given):
        if not re.fullmatch(r"[\w=,+-][\w=,.+-]{,199}", given):
            raise ValueError
        return given
    return Kind("at most 200 letters, digits and _=,.+- not starting with a dot", parse)


def collect(module, arguments=(), **overrides):
    """The module's settings as {name: value}, after the overrides.

    Args:
        module: the module whose annotated constants are the settings.
        arguments: overrides as text, `name=value` or `--name=value`.
        overrides: overrides as values.
    Returns:
        ({name: value} of all settings, {name: value} of those that were overridden).
    Raises:
        UserError: an unknown name, or a value outside its setting's range.
    """
    kinds = declared(module)
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
    values = {}
    for name in kinds:
        default = getattr(module, name)
        value = given.get(name, default)
        if value is None or (value == "None" and default is None):
            values[name] = None
        else:
            values[name] = check(name, value, kinds)
    return values, {name: values[name] for name in given}


def check(name, value, kinds):
    """The value as its kind has it, or UserError."""
    if name not in kinds:
        raise UserError("%s is set in a table but has no constant with a type, like '%s: integer(1, 9) = None'"
                        % (name, name))
    try:
        return kinds[name].parse(value)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        text = value if isinstance(value, str) and value.isprintable() else repr(value)
        raise UserError("%s=%s: %s must be %s" % (name, text[:60], name, kinds[name])) from None


def declared(module):
    """{name: Kind} of the module's settings, in the order of the file."""
    return {name: kind for name, kind in module.__annotations__.items() if isinstance(kind, Kind)}


def help_text(module, values):
    """A line for each setting: name, value, meaning and range."""
    meanings = dict(re.findall(r"^(\w+): .*?  # (.*)$", inspect.getsource(module), re.MULTILINE))
    lines = []
    for name, kind in declared(module).items():
        lines.append("  %s=%s" % (name, shown(values[name])))
        lines.append("        %s; %s" % (meanings.get(name, ""), kind))
    return "\n".join(lines)


def shown(value):
    """The value as it is written on the command line."""
    if isinstance(value, (tuple, list)):
        return ",".join(str(part) for part in value)
    if isinstance(value, float) and not math.isinf(value):
        return "%g" % value if float("%g" % value) == value else repr(value)
    return str(value)
