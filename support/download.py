"""How are files downloaded and verified before they get their final names?"""

import os
import threading
import time
from urllib.parse import urlsplit

import pooch
import requests
from tqdm import tqdm

from support import UserError

pooch.get_logger().setLevel("WARNING")

CONNECT_SECONDS = 4.0  # connection time-out; mirrors are probed together, so a packet-dropping firewall costs it once
READ_SECONDS = 20.0  # longest pause within a download
ATTEMPTS = 3  # per file, at each mirror that answers
CHUNK = 1 << 16


class Unavailable(UserError):
    """A file is not on disk and cannot be downloaded."""


class _Refused(Exception):
    """The mirror answers, but not with the file. Another request would not help."""


def fetch_all(files, mirrors, folder, exact=True):
    """Downloads files into a folder. A file gets its name only when it is complete and verified.

    Args:
        files: {name: (size in bytes, hash)}; the hash is a sha256 in hexadecimal, or "md5:" and an md5.
        mirrors: URLs of folders that contain the files. Each ends in '/'. They are tried in this order.
        folder: the folder to write to.
        exact: whether the sizes are those of the files; else they are the most that is accepted.
    Raises:
        Unavailable: no mirror delivers a file, or the folder cannot be written. The message says which and why.
    """
    problems = _unreachable(mirrors)
    reachable = [mirror for mirror in mirrors if mirror not in problems]
    try:
        if reachable:  # else no empty folder is left behind
            os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise Unavailable("cannot create the folder %s (%s)" % (folder, error.strerror)) from None
    for name, (size, known_hash) in files.items():
        for mirror in reachable:
            problem = _fetch(mirror + name, name, size, known_hash, folder, exact)
            if problem is None:
                break
            problems[mirror] = problem
        else:
            raise Unavailable("%s could not be downloaded (%s)" % (name, "; ".join(
                "%s: %s" % (urlsplit(mirror).netloc, problem) for mirror, problem in problems.items())))


def _fetch(url, name, size, known_hash, folder, exact):
    """Tries one URL up to ATTEMPTS times. Returns a description of the last problem, or None after a success."""
    def download(url, temporary, _pooch):
        _stream(url, temporary, name, size, exact)

    if ":" not in known_hash:
        known_hash = "sha256:" + known_hash
    problem = None
    for attempt in range(ATTEMPTS):
        time.sleep(attempt)  # 0, 1, 2 seconds: a busy server may recover
        try:
            # pooch downloads to a temporary file in the folder, compares the hash, then renames the file.
            path = pooch.retrieve(url, known_hash, name, folder, downloader=download)
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(path, 0o666 & ~umask)  # the temporary file was private to its owner
            return None
        except _Refused as error:
            return str(error)
        except requests.RequestException as error:
            problem = "no complete answer (%s)" % type(error).__name__
        except ValueError:  # pooch: the hash does not match
            problem = "received a wrong file (%s differs)" % known_hash.split(":")[0]
        except OSError as error:
            raise Unavailable("cannot write %s (%s)" % (os.path.join(folder, name), error.strerror or error)) from None
    return problem


def _stream(url, path, name, size, exact):
    """Downloads a URL to a path, with a progress bar. Never writes more than `size` bytes; `exact`: nor less."""
    with requests.get(url, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS),
                      headers={"Accept-Encoding": "identity"}) as response:
        if 400 <= response.status_code < 500 and response.status_code not in (408, 429):  # too slow, too many requests
            raise _Refused("HTTP status %d" % response.status_code)
        response.raise_for_status()
        length = response.headers.get("Content-Length")
        if exact and length is not None and length != str(size):
            raise _Refused("sends %s bytes instead of %d" % (length, size))
        least = size if exact else int(length) if length and length.isdigit() else 0
        received = 0
        with open(path, "wb") as file, tqdm(total=least or None, unit="B", unit_scale=True, desc=name, leave=False,
                                            disable=None) as bar:
            for chunk in response.iter_content(CHUNK):
                received += len(chunk)
                if received > size:
                    raise _Refused("sends more than the %d bytes that are expected" % size)
                file.write(chunk)
                bar.update(len(chunk))
        if received < least:
            raise requests.ConnectionError("%d of %d bytes" % (received, least))


def _unreachable(mirrors):
    """Probes all mirrors at once; returns {mirror: problem} for the mirrors whose host does not answer.

    Each probe runs in a thread, because a DNS lookup has no time-out of its own.
    """
    problems = {mirror: "no answer in %g seconds" % CONNECT_SECONDS for mirror in mirrors}

    def ask(mirror):
        try:
            requests.head(mirror, timeout=(CONNECT_SECONDS, CONNECT_SECONDS)).close()
            del problems[mirror]
        except requests.ReadTimeout:
            pass
        except requests.RequestException as error:
            problems[mirror] = "cannot be reached (%s)" % type(error).__name__

    threads = [threading.Thread(target=ask, args=(mirror,), daemon=True) for mirror in mirrors]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + CONNECT_SECONDS + 1
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(problems)
