"""How is a setting declared, checked, overridden and shown?

A setting is an annotated constant of a module. The annotation is the setting's type and range. The comment on the same
line is the description that `--help` shows. A value may depend on the data set:

    growth_k: integer(1, 512) = by_dataset(12, cifar=24)  # feature maps that each layer adds
"""

import difflib
import functools
import glob
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
        names = [name for name in self.others if self.fits(name, dataset)]
        return self.others[max(names, key=len)] if names else self.default

    @staticmethod
    def fits(prefix, dataset):
        """Whether a data set's name begins so. cifar10 begins with cifar and cifar10, cifar100 not with cifar10."""
        return re.match(re.escape(prefix) + r"(?!(?<=\d)\d)", dataset) is not None


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
    `check` turns into UserError. `choices` are the values of a `one_of`. `str()` returns a description for the user.
    """

    def __init__(self, description, parse, choices=()):
        self.description = description
        self.parse = parse
        self.choices = choices

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
        value = float(str(given) if hasattr(given, "dtype") else given) + 0.0  # float32(0.1) is meant as 0.1, -0 as 0
        if not low <= value <= high:  # the comparison is False for NaN
            raise ValueError
        return value
    return Kind("a number from %g to %g" % (low, high), parse)


def count_or_share(low, high):
    """An integer from low to high, or a share: a number above 0 and below 1."""
    count, share = integer(low, high), number(0.0, 1.0)

    def parse(given):
        try:
            return count.parse(given)
        except (TypeError, ValueError):  # no integer
            value = share.parse(given)
        if value == 1:  # all images, or one of them?
            raise ValueError
        return value or 0
    return Kind("an integer from %d to %d, or a share between 0 and 1" % (low, high), parse)


def integers(low, high, most):
    """One to `most` integers from low to high, separated by commas."""
    one = integer(low, high)

    def parse(given):
        values = tuple(one.parse(part) for part in _parts(given))
        if not 1 <= len(values) <= most:
            raise ValueError
        return values
    return Kind("1 to %d integers from %d to %d, separated by commas" % (most, low, high), parse)


def pair_or_auto():
    """"auto", or two numbers (low, high), low < high, separated by a comma."""
    one = number(-1e38, 1e38)  # within float32

    def parse(given):
        if isinstance(given, str) and given.lower() == "auto":
            return "auto"
        low, high = (one.parse(part) for part in _parts(given))
        if low >= high:
            raise ValueError
        return low, high
    return Kind("auto, or two numbers low,high, the lower one first", parse)


def _parts(given):
    """The parts of a text that commas separate, also in brackets; any other value as it is."""
    return given.strip("()[]").split(",") if isinstance(given, str) else given


def boolean():
    """True or False."""
    def parse(given):
        return {"true": True, "yes": True, "on": True, "1": True,
                "false": False, "no": False, "off": False, "0": False}[str(given).lower()]  # NumPy's, too
    return Kind("True or False", parse)


def one_of(choices):
    """One of the names in `choices`. Case, hyphens and underscores are forgiven: Adam, densenet-121."""
    by_squashed = {squashed(choice): choice for choice in choices}

    def parse(given):
        return given if given in choices else by_squashed[squashed(given)]
    return Kind("one of " + ", ".join(choices), parse, choices)


def some_of(choices):
    """At least one of the names in `choices`, separated by commas, as in `one_of`; their order is that of `choices`."""
    one = one_of(choices)

    def parse(given):
        chosen = {one.parse(part.strip()) for part in _parts(given)}
        if not chosen:
            raise ValueError
        return tuple(choice for choice in choices if choice in chosen)
    return Kind("one or more of %s, separated by commas" % ", ".join(choices), parse)


def squashed(name):
    """The name in lower case, without what separates words: Densenet-121 and densenet_121 become densenet121."""
    return re.sub(r"[\W_]+", "", name.lower())


# Paths of other machines. pathlib makes s3:/bucket of s3://bucket.
REMOTE = re.compile(r"[A-Za-z][\w.+-]+://|(s3[an]?|gc?s|hdfs|dbfs|abfss?|wasbs?|adl|file|memory|https?):/",
                    re.IGNORECASE)


def paths():
    """Any number of paths of files or folders, separated by commas. ~ is the user's home folder.

    A path that contains a comma is in several parts of the value, until `expanded` has looked at the files.
    """
    def parse(given):
        given = os.fspath(given) if isinstance(given, os.PathLike) else given
        parts = [os.fspath(part) for part in (given.split(",") if isinstance(given, str) else given)]
        if not parts or parts == [""]:
            return ()
        if not any(parts) or any("\0" in part or REMOTE.match(part.strip()) for part in parts):
            raise ValueError
        return tuple(os.path.expanduser(part) for part in parts)
    return Kind("paths on this machine, separated by commas", parse)


def expanded(parts, name="images"):
    """The paths that the value of a `paths()` setting stands for, in its order, those of a pattern sorted.

    A path that exists wins over what else the value could mean: over its comma ("Smith, John.png" is one file if there
    is such a file, the longest first), then over its reading as a pattern (a[1].png). A space after a comma is left out
    where only the path without it exists. A path that does not exist stays as it is.

    Args:
        parts: the value of the setting.
        name: the setting, for the error message.
    Raises:
        UserError: a pattern (*, ?, [...], or ** for folders at any depth) has no match.
    """
    found, position = [], 0
    names_before_commas = functools.lru_cache(None)(_names_before_commas)
    while position < len(parts):
        end = max(_ends_of_paths(parts, position, names_before_commas), default=position + 1)
        path = ",".join(parts[position:end])
        position = end
        path = path if os.path.lexists(path) or not os.path.lexists(path.strip()) else path.strip()
        if os.path.lexists(path) or not glob.has_magic(path):
            found += [path] if path.strip() else []  # a comma too many
            continue
        matches = sorted(set(glob.glob(path.strip(), recursive=True)))
        if not matches:
            raise UserError("%s=%s: there is no file of this name, and none that the pattern fits: check the folder "
                            "and the name" % (name, path.strip()))
        found += _topmost(matches)
    return found


def _ends_of_paths(parts, start, names_before_commas):
    """Yields each end > start + 1 where parts[start:end], joined by commas, exist as a path or match as a pattern."""
    folder, name = os.path.split(parts[start].lstrip())
    if name not in names_before_commas(folder):  # else a long list would be looked up in all combinations
        return
    for end in range(start + 2, len(parts) + 1):
        path = ",".join(parts[start:end])
        if os.path.lexists(path) or os.path.lexists(path.strip()) or glob.has_magic(path) and glob.glob(path.strip()):
            yield end


def _names_before_commas(folder):
    """What stands before a comma in a name in the folder, each such beginning."""
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return frozenset()
    return frozenset(name[:position] for name in names for position, letter in enumerate(name) if letter == ",")


def _topmost(matches):
    """The paths without those that lie in a folder among them, which contains them anyway."""
    folders = {path.rstrip(os.sep) for path in matches if os.path.isdir(path)}

    def covered(path):
        parent = os.path.dirname(path.rstrip(os.sep))
        return bool(parent) and (parent in folders or covered(parent))
    return [path for path in matches if not covered(path)]


def path(optional=False, tensorflow=True):
    """A path of a file or folder on this machine. ~ is the user's home folder.

    Args:
        optional: the path may be empty.
        tensorflow: TensorFlow reads or writes the path. It takes *?[] for patterns, so that they are refused.
    """
    def parse(given):
        given = os.fspath(given)
        if optional and given == "":
            return given
        if not re.fullmatch(r"[^\0*?\[\]]+" if tensorflow else r"[^\0]+", given) or REMOTE.match(given):
            raise ValueError
        given.encode("utf-8")  # TensorFlow does the same; characters that cannot be encoded fail here
        return os.path.expanduser(given)
    return Kind("a path on this machine%s%s" % (" without any of *?[]" if tensorflow else "",
                                                ", or empty" if optional else ""), parse)


def file_name(optional=False):
    """A name that can be one component of a path. `optional`: the name may be empty."""
    def parse(given):
        if optional and given == "":
            return given
        given = given.rstrip("/")  # of a folder, completed by the shell
        if not re.fullmatch(r"[\w=,+-][\w=,.+-]{,199}", given) or len(given.encode()) > 255:  # of file systems
            raise ValueError
        return given
    return Kind("at most 200 letters, digits and _=,.+- not starting with a dot", parse)


def given_in(arguments, overrides, kinds, hints=None):
    """Checks the settings that are given for one run.

    Args:
        arguments: settings as text, `name=value` or `--name=value`, as a list or as one text with spaces between them.
        overrides: settings as {name: value}. They take precedence over `arguments`.
        kinds: {name: Kind} of all settings.
        hints: {a usual name that is no setting, `squashed`: the setting that it is here, or a sentence}.
    Returns:
        {name: value} of the given settings.
    Raises:
        UserError: a name is unknown, or a value is outside its setting's range.
    """
    given = {}
    arguments = _without_spaces(arguments.split() if isinstance(arguments, str) else arguments)
    for argument, following in zip(arguments, arguments[1:] + [""]):
        name, equals, text = argument.partition("=")
        if name != name.rstrip():  # "growth_k = 24" as one argument
            name, text = name.strip(), text.strip()
        name = name[2:] if name.startswith("--") else name
        if not equals and re.match(r"(%s):." % "|".join(kinds), argument):
            raise UserError("'%s' is not a setting: write %s" % (argument, argument.replace(":", "=", 1)))
        if not equals and not argument.startswith("-") and given and re.match(r"[\d.]", argument):
            raise UserError("'%s' is not a setting: write the parts of a value with commas between them, without spaces"
                            % argument)
        if not equals:
            text = following if argument.startswith("-") and not re.match(r"-|.*=", following) else ""
            advice = _advice(name, text, kinds, hints or {}) or "write name=value, with quotes around spaces"
            raise UserError("'%s' is not a setting: %s (--help lists all names)" % (
                " ".join([argument, text]).rstrip(), advice))
        given[name] = text
    given.update(overrides)
    for name, value in given.items():
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=3)
            advice = _advice(name, value, kinds, hints or {}) or near and "the nearest are " + ", ".join(near)
            raise UserError("there is no setting '%s': %s" % (
                name, "%s (--help lists all)" % advice if advice else "--help lists all"))
    return {name: check(name, value, kinds) for name, value in given.items()}


def _without_spaces(arguments):
    """Joins what a shell took apart: `a = 1`, `a= 1` and `a =1` become `a=1`; `a=1, 2` and `a=1 ,2` one argument.

    A setting after an empty value is a setting of its own: `json= growth_k=3`.
    """
    found = []
    for argument in arguments:
        before = found[-1] if found else ""
        value = "=" not in argument and not argument.startswith("--")
        if re.fullmatch(r"[\w-]+", before) and argument.startswith("=") or (
                value and re.fullmatch(r"[\w-]+=", before)):
            found[-1] += argument
        elif value and "=" in before and (before.endswith(",") or argument.startswith(",")):
            found[-1] += " " + argument
        else:
            found.append(argument)
    return found


def _advice(name, value, kinds, hints):
    """What to write instead of a name that is no setting; None if nothing is known of it."""
    plain = squashed(name)
    here = {squashed(own): own for own in kinds}.get(plain) or hints.get(plain, "")
    if here in kinds:
        value = _printable(value if isinstance(value, str) else shown(value))
        value = value or ("True" if str(kinds[here]) == str(boolean()) else "value")
        return "%swrite %s=%s" % ("" if plain == squashed(here) else "%s is %s here, " % (name.strip("-"), here), here,
                                  value)
    if here:
        return here
    for own, kind in kinds.items():  # a value without its setting: evaluate, --sgd, cifar10
        for choice in kind.choices:
            if choice == USUAL_VALUES.get(plain) or squashed(choice) == plain:
                return "write %s=%s" % (own, choice)
    return None


def constants_of(module, dataset=""):
    """Checks the settings of a module; returns {name: value}, with the values for a data set.

    Raises:
        UserError: a value is outside its setting's range.
    """
    kinds = declared(module)
    values = {name: getattr(module, name) for name in kinds}
    return {name: check(name, value.value_for(dataset) if isinstance(value, ByDataset) else value, kinds)
            for name, value in values.items()}


# Names that other programs have for values, without what separates words, and what they are called here.
USUAL_VALUES = dict(
    nesterov="momentum", nag="momentum", sgdm="sgd", sgdmomentum="sgd", adamw="adam", step="steps", multistep="steps",
    piecewise="steps", cos="cosine", cosineannealing="cosine", exp="exponential", fixed="constant", avg="average",
    fp32="float32", fp16="float16", half="float16", bf16="bfloat16", test="evaluate", eval="evaluate", val="evaluate",
    validate="evaluate", infer="predict", inference="predict", classify="predict", fit="train", training="train",
    save="export", freeze="export", imagefolder="folder", imagenet="folder", rmsprop="adam", adagrad="adam",
    nadam="adam", radam="adam", lion="adam", lamb="adam")


def check(name, value, kinds):
    """Returns the value of a setting, converted by its Kind. Raises UserError if the value is invalid."""
    try:
        return kinds[name].parse(value)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        choices, plain = kinds[name].choices, squashed(str(value)[:60])
        near = [USUAL_VALUES[plain]] if USUAL_VALUES.get(plain) in choices else (
            difflib.get_close_matches(str(value)[:60].lower(), choices, n=2))
        raise UserError("%s=%s: %s must be %s%s" % (
            name, _printable(value), name, kinds[name], near and "; the nearest is " + " or ".join(near) or "")
            ) from None


def _printable(value):
    """Returns a given value as text for a message, in at most 60 characters."""
    return (value if isinstance(value, str) and value.isprintable() else repr(value))[:60]


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
        return ",".join(shown(part) for part in value)
    if isinstance(value, float) and not math.isinf(value):
        return "%g" % value if float("%g" % value) == value else repr(value)
    return str(value)
