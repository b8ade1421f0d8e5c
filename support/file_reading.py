"""How are the files of a data set found, and read without trusting their headers?"""

import contextlib
import gzip
import itertools
import os
import posixpath
import re
import tarfile
import unicodedata
import zlib

from support import UserError

GZIP_MAGIC = b"\x1f\x8b"
MOST_DEFLATE_GAINS = 1032  # maximum ratio of decompressed to compressed size in the deflate format
MOVE_AWAY = "move it away, and the right file is sought again"


class DataError(UserError):
    """A file or folder of a data set is missing, damaged, or does not have the expected content."""


def key(name):
    """Returns a name in lower case without "-", "_", "." and spaces. Names of files and folders are compared so."""
    return re.sub(r"[-_. ]", "", name.lower())


def listing(folder):
    """Returns the sorted names in a folder; none if the folder does not exist.

    Raises:
        DataError: it is not a folder, or cannot be read.
    """
    try:
        return sorted(os.listdir(folder)) if os.path.lexists(folder) else []
    except OSError as error:
        raise DataError("%s cannot be read as a folder (%s): set data_dir to the folder that holds the data"
                        % (folder, error.strerror)) from None


def find(names, folders):
    """Searches folders for a file; returns the first path that is found, or None.

    Names are compared by their `key`: `train-images.idx3-ubyte` is found as `train-images-idx3-ubyte`. A file may also
    lie in a folder of its own name.

    Args:
        names: names that are accepted, in order of preference within a folder.
        folders: folders to search, in this order. Folders that do not exist are skipped.
    Raises:
        DataError: one of the folders is not a folder, or cannot be read.
    """
    for folder in folders:
        paths = [os.path.join(folder, name) for name in _named(listing(folder), names)]
        inside = (os.path.join(path, name) for path in paths if os.path.isdir(path)
                  for name in _named(listing(path), names))
        for path in itertools.chain(paths, inside):
            if not os.path.isdir(path):
                return path
    return None


def subfolders(names, folders):
    """Returns the sub-folders of folders that have one of the names, compared by their `key`."""
    paths = [os.path.join(folder, name) for folder in folders for name in _named(listing(folder), names)]
    return [path for path in paths if os.path.isdir(path)]


def _named(present, names):
    """The present names that equal one of `names` by their `key`: exact ones first, in the order of `names`."""
    keys = {key(name) for name in names}
    exact = [name for name in names if name in present]
    return exact + [name for name in present
                    if key(name) in keys and name not in exact and not name.startswith(".")]  # as a Mac adds to others


def similar(pattern, folders, used=()):
    """Returns what lies in folders under a similar name, so that a message can say that it is not used.

    Args:
        pattern: regular expression, searched in the `key` of each name.
        folders: folders to search. Those that cannot be read are skipped.
        used: paths to leave out, besides the folders themselves.
    """
    found = []
    for folder in dict.fromkeys(folders):
        with contextlib.suppress(DataError):
            found += [os.path.join(folder, name) for name in listing(folder) if re.search(pattern, key(name))]
    return [path for path in found if path not in used and path not in folders]


def printable(text):
    """A name or path for a message: what cannot be printed, such as a line break, is escaped."""
    return text if text.isprintable() else repr(text)


def composed(name):
    """The name with each letter and its accent as one character (Unicode's form NFC), by which names are compared.

    Archives that are made on macOS have them as two (NFD).
    """
    return unicodedata.normalize("NFC", name)


def shortened(names, most=5):
    """Returns names, paths or numbers as text: at most `most` of them, then the number of the others."""
    return ", ".join(map(str, names[:most])) + (" and %d more" % (len(names) - most) if len(names) > most else "")


def _opener(path):
    """`gzip.open` or `open`, by the file's content: browsers unpack some downloads and keep their names."""
    with open(path, "rb") as file:
        return gzip.open if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC else open


def read_bytes(path, header_size, size_from_header):
    """Reads a file and checks that its size agrees with its header. Content in gzip format is decompressed.

    Args:
        path: the file.
        header_size: number of bytes in the header.
        size_from_header: function from the header's bytes to the size in bytes of the whole content, header included.
            It raises DataError if the header is wrong.
    Raises:
        DataError: the file is unreadable or damaged, or shorter or longer than its header says.
    """
    try:
        opener = _opener(path)
        with opener(path, "rb") as file:
            header = file.read(header_size)
            if len(header) < header_size:
                raise DataError("%s is truncated, its header is incomplete: %s" % (path, MOVE_AWAY))
            size = size_from_header(header)
            limit = os.path.getsize(path) * (MOST_DEFLATE_GAINS if opener is gzip.open else 1)
            if size > limit:  # checked before memory is allocated
                raise DataError("%s should hold %d bytes, more than a file of its size can: %s"
                                % (path, size, MOVE_AWAY))
            content = header + file.read(size - header_size + 1)
    except OSError as error:
        raise DataError("%s cannot be read (%s)" % (path, error.strerror or error)) from None
    except (EOFError, zlib.error) as error:
        raise DataError("%s is damaged (%s): %s" % (path, error, MOVE_AWAY)) from None
    if len(content) != size:
        raise DataError("%s is %s than the %d bytes it should hold: %s"
                        % (path, "shorter" if len(content) < size else "longer", size, MOVE_AWAY))
    return content


def read_members(path, sizes):
    """Reads members of a tar archive, plain or compressed with gzip, into memory.

    Nothing is extracted to disk, so member paths are harmless.

    Args:
        path: the archive.
        sizes: {name of a member: size in bytes}. The archive may have the name with ./ before it.
    Returns:
        {name: content}.
    Raises:
        DataError: the archive is unreadable or damaged; a member is missing, has another size or is not a regular
            file; the decompressed archive is much larger than the members.
    """
    found = {}
    try:
        with _opener(path)(path, "rb") as unpacked:
            limited = _Limited(unpacked, (1 << 20) + 2 * sum(sizes.values()))
            with tarfile.open(fileobj=limited, mode="r|") as archive:
                named = ((posixpath.normpath(member.name), member) for member in archive)
                found.update((name, _content_of(archive, member, sizes[name], path))
                             for name, member in named if name in sizes)
            while limited.read(1 << 20):  # to the end, where gzip verifies its checksum
                pass
    except _TooLong:
        raise DataError("%s unpacks to far more than it should: it is not the archive its name says" % path) from None
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, RecursionError) as error:
        if getattr(error, "errno", None):  # of the operating system, not of the content
            raise DataError("%s cannot be read (%s)" % (path, error.strerror)) from None
        raise DataError("%s cannot be read, or is damaged (%s): %s" % (path, error, MOVE_AWAY)) from None
    missing = sorted(set(sizes) - set(found))
    if missing:
        raise DataError("%s is not the archive its name says: it has no member %s" % (path, missing[0]))
    return found


def _content_of(archive, member, size, path):
    if not member.isreg() or member.size != size:
        raise DataError("%s is not the archive its name says: its member %s is no file of %d bytes"
                        % (path, member.name, size))
    return archive.extractfile(member).read()


class _TooLong(Exception):
    """A `_Limited` file has more bytes than its limit."""


class _Limited:
    """A file that raises _TooLong after `limit` bytes. Limits the cost of a decompression bomb or a wrong header."""

    def __init__(self, file, limit):
        self._file = file
        self._left = limit

    def read(self, size):
        content = self._file.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise _TooLong
        return content
