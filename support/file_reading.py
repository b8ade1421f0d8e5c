"""How are a data set's files found, and read without trusting their headers?"""

import gzip
import os
import tarfile
import zlib

from support import UserError

MOST_DEFLATE_GAINS = 1032  # no deflate stream grows by more than this factor when it is unpacked


class DataError(UserError):
    """A file of a data set is not what its name says."""


def find(names, folders):
    """The path of the first of the names that is in one of the folders, the folders in turn; or None.

    Raises:
        DataError: a folder is no folder, or cannot be read.
    """
    for folder in folders:
        try:
            present = set(os.listdir(folder)) if os.path.lexists(folder) else ()
        except OSError as error:
            raise DataError("%s cannot be read as a folder (%s): set data_dir to the folder that holds the data"
                            % (folder, error.strerror)) from None
        for name in names:
            if name in present:
                return os.path.join(folder, name)
    return None


def read_bytes(path, header_size, size_from_header):
    """The content of a file, unpacked if its name ends in .gz, once its size is seen to be what its header claims.

    Args:
        header_size: bytes at the start that say how long the file is.
        size_from_header: from those bytes to the size of the whole content; raises DataError where they are wrong.
    Raises:
        DataError: unreadable, damaged, or shorter or longer than its header claims.
    """
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            header = file.read(header_size)
            if len(header) < header_size:
                raise DataError("%s is cut short: it has no complete header" % path)
            size = size_from_header(header)
            limit = os.path.getsize(path) * (MOST_DEFLATE_GAINS if path.endswith(".gz") else 1)
            if size > limit:  # before any memory is asked for
                raise DataError("%s should hold %d bytes, more than a file of its size can" % (path, size))
            content = header + file.read(size - header_size + 1)
    except OSError as error:
        raise DataError("%s cannot be read (%s)" % (path, error.strerror or error)) from None
    except (EOFError, zlib.error) as error:
        raise DataError("%s is damaged (%s)" % (path, error)) from None
    if len(content) != size:
        raise DataError("%s is %s than the %d bytes it should hold"
                        % (path, "shorter" if len(content) < size else "longer", size))
    return content


def read_members(path, sizes):
    """The content of some members of a tar.gz, read in memory: nothing is written, wherever a member wants to go.

    Args:
        sizes: {name of the member, exactly as in the archive: bytes}.
    Returns:
        {name: content}.
    Raises:
        DataError: unreadable or damaged; a member is missing, has another size or is no plain file; the archive
            unpacks to far more than those members.
    """
    found = {}
    try:
        with gzip.open(path, "rb") as unpacked:
            limited = _Limited(unpacked, (1 << 20) + 2 * sum(sizes.values()))
            with tarfile.open(fileobj=limited, mode="r|") as archive:
                found.update((member.name, _content_of(archive, member, sizes[member.name], path))
                             for member in archive if member.name in sizes)
            while limited.read(1 << 20):  # to the end, where gzip compares its checksum
                pass
    except _TooLong:
        raise DataError("%s unpacks to far more than it should: it is not the archive its name says" % path) from None
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, RecursionError) as error:
        raise DataError("%s cannot be read, or is damaged (%s)" % (path, error)) from None
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
    """More bytes came than there should be."""


class _Limited:
    """A file of which at most `limit` bytes can be read, so that neither a bomb nor a bad header costs more."""

    def __init__(self, file, limit):
        self._file = file
        self._left = limit

    def read(self, size):
        content = self._file.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise _TooLong
        return content
