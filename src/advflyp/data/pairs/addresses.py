"""Files by pattern, on this machine or anywhere fsspec reaches (s3, gs, https, hf, …).

There are two kinds of addresses. Those that the user names, on a command line or in a recipe, may be anything that
fsspec opens. Those in a file (a cell of a table) were chosen by its author, who may be a stranger: `named_in` decides
which are allowed, and `read_named` reads them.
"""

import io
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import OpenerDirector

import braceexpand
import fsspec

from advflyp.__about__ import __version__
from advflyp.data.filenames import is_clutter
from advflyp.data.isolated import advflyp_guard as guard
from advflyp.errors import RunError, SkippedSample
from advflyp.limits import FETCH_SECONDS, MAX_IMAGE_BYTES, open_regular, read_image_file, read_image_stream

GLOB = set("*?[")
# Maximum files that a pattern may name, digits of a number in its braces, and depth of nested braces.
MAX_NAMED, MAX_DIGITS, MAX_NESTED = 1_000_000, 12, 16
WEB = ("http", "https")
# Schemes allowed in a file: the web, through the guard of `data download`, and stores whose host no address can set.
FOREIGN = (*WEB, "s3", "gs", "gcs", "hf")
# Characters left as they are, as in `requests`: addresses that are quoted already do not change.
SAFE = "!#$%&'()*+,/:;=?@[]~"
# What fsspec says, as a ValueError, of a web server that only sends whole files.
NO_RANGES = "support range requests"


class NotServed(ValueError):
    """A remote file that is not there, or that may not be read: buckets also answer 403 for a missing file."""


def is_remote(address: str) -> bool:
    """Whether it is an fsspec address: s3://…, https://…"""
    return "://" in address


class _Remote(io.BufferedIOBase):
    """A remote file; whatever fails while it is read is a `RunError`, since each file system has errors of its own."""

    def __init__(self, stream: Any, address: str) -> None:
        self.stream, self.address = stream, address

    def read(self, size: int | None = -1) -> bytes:
        with self._explained():
            return self.stream.read(-1 if size is None else size)

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._explained():
            return self.stream.seek(offset, whence)

    def tell(self) -> int:
        return self.stream.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self.stream.close()
        super().close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise RunError(explain_failure(self.address, error)) from error


def open_binary(address: str) -> BinaryIO:
    """Open a readable and seekable stream, whose `read` and `seek` raise a `RunError` if its server fails.

    Raises:
        ValueError: It cannot be opened; `NotServed` if it is remote and most likely not there.
    """
    if is_remote(address):
        try:
            return cast(BinaryIO, _Remote(_open_remote(address), address))
        except Exception as error:
            kind = ValueError if _has_failed(error) else NotServed
            raise kind(explain_failure(address, error)) from None
    try:
        return open_regular(address)
    except FileNotFoundError:
        raise ValueError(f"there is no {address}") from None
    except SkippedSample as reason:
        raise ValueError(f"cannot open {address}: {reason}") from None
    except OSError as error:
        raise ValueError(f"cannot open {address}: {error.strerror}") from None


def _open_remote(address: str) -> Any:
    """A stream of fsspec."""
    system, path = fsspec.url_to_fs(address)
    stream = system.open(path, "rb")
    if getattr(stream, "size", 0) is not None:
        return stream
    # An answer that can only be read from its beginning: of unknown length, or empty.
    with stream:
        if stream.read(1):
            raise ValueError(NO_RANGES)
    return io.BytesIO()


def explain_failure(address: str, error: BaseException) -> str:
    """Why an address cannot be read: a sentence that distinguishes a missing file from a network failure.

    Args:
        address: What was asked for.
        error: What urllib, fsspec or one of its file systems raised; its causes are examined too.
    """
    causes, status = _causes(error), _answer(error)
    if status in (401, 403) or (status is None and any(isinstance(c, PermissionError) for c in causes)):
        answer = "" if status is None else f" (answer {status})"
        return f"the server does not let you read {address}{answer}: log in or set up its credentials"
    if status == 404:
        return f"there is no {address}: its server returned 404; check the address"
    if status is not None:
        return f"the server of {address} answers {status}: try again later"
    if NO_RANGES in str(error):
        return f"{address}: its server serves no parts of a file; download it first"
    if any(map(_is_network, causes)):
        # Of a `gaierror`, whose number is negative, its own words.
        said = (
            os.strerror(cause.errno) if cause.errno and cause.errno > 0 else cause.strerror
            for cause in reversed(causes)
            if isinstance(cause, OSError)
        )
        last = str(getattr(causes[-1], "message", causes[-1])) or type(causes[-1]).__name__
        reason = next(filter(None, said), last)
        return f"the server of {address} cannot be reached ({reason}): check the network and the address"
    if isinstance(error, FileNotFoundError):
        return f"there is no {address}"
    if isinstance(error, ImportError):
        return f"{address} needs another package: {error}"
    # Every file system of fsspec has errors of its own.
    return f"cannot open {address}: {type(error).__name__}: {error}"


def _causes(error: BaseException) -> list[BaseException]:
    """An error and its causes, the outermost first; urllib keeps the cause in `reason`."""
    found: list[BaseException] = []
    link: Any = error
    while isinstance(link, BaseException) and link not in found:
        found.append(link)
        link = link.__cause__ or link.__context__ or getattr(link, "reason", None)
    return found


def _has_failed(error: BaseException) -> bool:
    """Whether the network or the server failed, so that the file may well be there."""
    status = _answer(error)
    return any(map(_is_network, _causes(error))) if status is None else status not in (401, 403, 404)


def _answer(error: BaseException) -> int | None:
    """The HTTP status of an error or of its causes, as urllib, aiohttp, and clients with a `response` store it."""
    causes = _causes(error)
    if any(map(_is_malformed, causes)):
        return None
    places = (place for cause in causes for place in (cause, getattr(cause, "response", None)))
    values = (getattr(place, name, None) for place in places for name in ("status", "code", "status_code"))
    return next((value for value in values if isinstance(value, int) and value >= 400), None)


def _is_malformed(error: BaseException) -> bool:
    """Whether an answer was cut off or is not HTTP; aiohttp gives these errors the status 400, whatever it was."""
    return type(error).__module__ == "aiohttp.http_exceptions"


def _is_network(error: BaseException) -> bool:
    """Whether no server answered, or not to the end; botocore, aiohttp and httpx share no error class for this."""
    known = isinstance(error, ConnectionError | TimeoutError | socket.gaierror)
    return known or _is_malformed(error) or bool(re.search("Connect|Timeout|DNS", type(error).__name__))


def named_in(table: str, name: str, local: Sequence[Path] = ()) -> str:
    """The address of the file that a table calls `name`; a relative name starts from the table's folder.

    A local table may name any local file, a remote one only files below its own folder. Both may name addresses with
    a scheme in FOREIGN.

    Args:
        table: The table's own address, which the user named.
        name: The text of a cell.
        local: Local folders whose files a remote table may name.

    Raises:
        SkippedSample: The table may not name this file.
    """
    folder = table.rpartition("/")[0]
    below, climbs = name.removeprefix(f"{folder}/"), ".." in re.split(r"[/\\]", name)
    if is_remote(table) and below != name and "::" not in below and not climbs:
        return name
    scheme = _scheme(name)
    if is_remote(name) and (scheme in WEB or (scheme in FOREIGN and "::" not in name)):
        return name
    # fsspec would open a chain of file systems for "::".
    if is_remote(name) or (is_remote(table) and "::" in name and not name.startswith("/")):
        raise SkippedSample("address of a kind that tables may not use")
    name = name if "/" in name else name.replace("\\", "/")  # as written on Windows
    if not is_remote(table):
        return os.path.join(os.path.dirname(table), name)
    if not name.startswith("/"):
        if climbs:
            raise SkippedSample("file outside the folder of its table")
        return f"{folder}/{name}"
    if not any(Path(os.path.realpath(name)).is_relative_to(os.path.realpath(place)) for place in local):
        raise SkippedSample("local file named by a table that is elsewhere")
    return name


def read_named(address: str, table: str) -> bytes:
    """The encoded image at an address of `named_in`, or at a path.

    Args:
        address: The image's address.
        table: The table that names it, else empty; the table's own host may be private, since the user named it.

    Raises:
        SkippedSample: It cannot be read, is larger than MAX_IMAGE_BYTES, took too long, or is at a private address.
    """
    try:
        if not is_remote(address):
            return read_image_file(address)
        if _scheme(address) in WEB:
            return _fetch(address, table)
        with _open_remote(address) as file:
            return read_image_stream(file)
    except (SkippedSample, RunError):
        raise
    except Exception:  # every file system of fsspec has errors of its own
        raise SkippedSample("image file cannot be read") from None


def quoted(address: str) -> str:
    """A web address as servers take it: in ASCII, without blanks, its host as `xn--…` where that is not ASCII."""
    return quote(re.sub(r"(?<=://)[^/?#:@]+", _ascii_host, address, count=1), safe=SAFE)


def _ascii_host(found: re.Match[str]) -> str:
    try:
        return found[0] if found[0].isascii() else found[0].encode("idna").decode()
    except UnicodeError:
        return found[0]  # no name that exists


def _scheme(address: str) -> str:
    return address.partition("://")[0].lower()


def _fetch(address: str, table: str) -> bytes:
    opener = _opener(_host_of(quoted(table)) if _scheme(table) in WEB else None)
    try:
        with opener.open(quoted(address), timeout=FETCH_SECONDS) as answer:
            return answer.read()
    except guard.Refused as reason:
        raise SkippedSample(str(reason)) from None
    except HTTPError as error:
        error.close()  # it holds the answer
        if error.code < 400:
            raise  # a redirect away from http and https
        raise SkippedSample(f"its server returned {error.code}") from None
    except URLError as error:
        if isinstance(error.reason, guard.Refused):
            raise SkippedSample(str(error.reason)) from None
        if any(map(_is_network, _causes(error))):
            raise SkippedSample("its server is unreachable") from None
        raise


def _host_of(address: str) -> tuple[str, int]:
    found = urlsplit(address)
    return found.hostname or "", found.port or (443 if found.scheme.lower() == "https" else 80)


@cache
def _opener(named: tuple[str, int] | None) -> OpenerDirector:
    limits = guard.Limits(max_bytes=MAX_IMAGE_BYTES, seconds=FETCH_SECONDS, named=named)
    opener = guard.guarded_opener(limits)
    opener.addheaders = [("User-Agent", f"advflyp/{__version__}")]
    return opener


def expand(pattern: str, inside: str) -> list[str]:
    """The files that a pattern with {braces} and *globs* names, sorted within each brace.

    Remote names without a glob are taken as they are.

    Args:
        pattern: Local or remote.
        inside: Glob of the files that a folder stands for, such as "*.tar*"; a remote folder ends with "/".

    Raises:
        ValueError: A part matches nothing; the message names that part.
    """
    if brace_count(pattern) > MAX_NAMED:
        raise ValueError(f"{pattern[:100]} names more than {MAX_NAMED:,} files; name fewer, or their folder")
    path = Path(pattern).expanduser()
    if not is_remote(pattern) and path.is_file():
        return [str(path)]  # its name may contain pattern characters
    found: list[str] = []
    for one in braceexpand.braceexpand(pattern):
        matches = _remote(one, inside) if is_remote(one) else _local(one, inside)
        if not matches:
            is_folder = not is_remote(one) and Path(one).expanduser().is_dir()
            raise ValueError(f"{one} holds no {inside}" if is_folder else f"there is nothing at {one}")
        found += matches
    return list(dict.fromkeys(found))


def brace_count(pattern: str) -> int:
    """An upper bound on the number of names that the {braces} of a pattern expand to."""
    factors: list[int] = []
    # `braceexpand` ignores a line break before the closing brace.
    for first, last, step in re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?\n?\}", pattern):
        if max(map(len, (first, last, step))) > MAX_DIGITS:
            return MAX_NAMED + 1
        factors.append(abs(int(last) - int(first)) // max(1, int(step or 1)) + 1)
    for first, last in re.findall(r"\{([A-Za-z])\.\.([A-Za-z])", pattern):
        factors.append(abs(ord(last) - ord(first)) + 1)
    choices: list[int] = []  # one entry for each open brace
    for sign in re.findall(r"\\.|[{},]", pattern):
        if sign == "{":
            choices.append(1)
            if len(choices) > MAX_NESTED:
                return MAX_NAMED + 1
        elif sign == "," and choices:
            choices[-1] += 1
        elif sign == "}" and choices:
            factors.append(choices.pop())
    count = 1
    for factor in factors:
        count = min(count * factor, MAX_NAMED + 1)
    return count


def _local(one: str, inside: str) -> list[str]:
    path = Path(one).expanduser()
    if path.is_dir():
        return [str(p) for p in sorted(path.glob(inside)) if not is_clutter(p.name)]
    if path.is_file():
        return [str(path)]
    if path.is_char_device() or path.is_block_device():
        raise ValueError(f"{one} is a device, not a regular file")
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    found = sorted(anchor.glob(str(path.relative_to(path.anchor))))
    return [str(p) for p in found if path.name.startswith(".") or not is_clutter(p.name)]


def _remote(one: str, inside: str) -> list[str]:
    one = one + inside if one.endswith("/") else one
    if not GLOB & set(one):
        return [one]
    try:
        system, path = fsspec.url_to_fs(one)
        found = sorted(match for match in system.glob(path) if not is_clutter(match.rpartition("/")[2]))
        return [system.unstrip_protocol(match) for match in found]
    except Exception as error:
        raise ValueError(explain_failure(one, error)) from None
