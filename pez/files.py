"""Files appear whole or not at all, and two runs never write to one place."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pez.errors import UserError
from pez.records import AnyRecord, read_record

if TYPE_CHECKING:  # not loaded for a caller who writes no table
    import pandas as pd

PARTIAL = ".partial-"
HASHING_THREADS = 8  # reading and SHA-256 both let other threads run
MAX_NAME = 200  # bytes of a run's name: file systems allow 255, and files add to it before and after


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], owner: str = "") -> Iterator[Path]:
    """Yield a temporary path beside `path`, moved onto it when the block ends without an error.

    The temporary name keeps the suffix of `path`, so writers that look at it work. Folders are
    written the same way: create the yielded path as a folder. A folder that is already there is replaced.
    What a killed process leaves is found by its `owner`, see `remove_partial`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial_folder(path.parent, owner) as folder:
        temporary = folder / path.name
        yield temporary
        _move(temporary, path)


@contextlib.contextmanager
def _partial_folder(parent: Path, owner: str) -> Iterator[Path]:
    """A new folder beside the file, locked while it is in use, so that `remove_dead_partial` sees that it is."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}{owner}", dir=parent))
        held = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.is_dir():
            break
        os.close(held)  # somebody took it for a dead one before it was locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(held)


def _move(temporary: Path, path: Path) -> None:
    if not temporary.is_dir():
        temporary.replace(path)
        return
    for attempt in itertools.count():  # a folder cannot be moved onto another, which a process beside us may put there
        with contextlib.suppress(FileNotFoundError):
            path.rename(temporary.parent / f"replaced-{attempt}")
        try:
            temporary.replace(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def remove_partial(directory: str | os.PathLike[str], owner: str = "") -> None:
    """Remove what a killed run left half-written directly inside `directory`: all of it, or one owner's."""
    for leftover in Path(directory).glob(f"{PARTIAL}{owner}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def remove_dead_partial(directory: str | os.PathLike[str]) -> None:
    """Remove what killed processes left half-written directly inside a folder that others may be writing to as well.

    Where the file system has no locks to tell by, nothing is removed.
    """
    for leftover in Path(directory).glob(f"{PARTIAL}*"):
        with contextlib.suppress(OSError):  # in use, gone by now, or without locks
            held = os.open(leftover, os.O_RDONLY)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(held)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write `text` atomically and return the path."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write `value` as indented JSON, atomically."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=False, default=str) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON file of any fields; a missing or damaged one is a UserError that names it."""
    return read_record(Path(path), AnyRecord)


def write_parquet(path: str | os.PathLike[str], frame: "pd.DataFrame", owner: str = "") -> Path:
    """Write a pandas data frame atomically as parquet, without its index, with a checksum of every page."""
    with atomic_path(path, owner) as temporary, temporary.open("wb") as file:  # pyarrow takes every path for UTF-8
        frame.to_parquet(file, index=False, write_page_checksum=True)
    return Path(path)


def write_csv(path: str | os.PathLike[str], frame: "pd.DataFrame") -> Path:
    """Write a pandas data frame atomically as CSV, without its index."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False)
    return Path(path)


def check_run_name(name: str, option: str = "--run-name") -> str:
    """`name`, given as `option`, if it can name files; UserError for an empty or long one, slashes or a leading dot."""
    if not name or Path(name).name != name or name.startswith("."):
        raise UserError(f"{option} names files, so no slashes or leading dots; got {name!r}: choose another")
    if any("\ud800" <= letter <= "\udfff" or not letter.isprintable() for letter in name):
        raise UserError(
            f"{option} names files and stands in tables, so printable UTF-8 letters only; got {name!r}: choose another"
        )
    if len(os.fsencode(name)) > MAX_NAME:
        raise UserError(
            f"{option} names files, so at most {MAX_NAME} bytes; got {len(os.fsencode(name))}: choose another"
        )
    return name


@contextlib.contextmanager
def run_lock(results_dir: str | os.PathLike[str], run_name: str) -> Iterator[None]:
    """`exclusive` for a run's name in a results folder, so that two runs never mix their files."""
    with exclusive(Path(results_dir) / ".locks" / check_run_name(run_name)):
        remove_dead_partial(results_dir)
        yield


def fingerprint(value: Any) -> str:
    """Sixteen hex digits of the SHA-256 of `value` as canonical JSON: equal settings, equal fingerprint."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def fingerprint_of_bytes(*contents: bytes) -> str:
    """Sixteen hex digits over contents of files, in order."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def fingerprint_of_files(paths: Iterable[str | os.PathLike[str]]) -> str:
    """Sixteen hex digits over the contents of files, in order; a missing or unreadable one counts as empty.

    So frames that were changed are never taken for what they were, whatever their size and date.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            if not Path(path).is_file():  # a pipe would never answer
                raise FileNotFoundError(path)
            with Path(path).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError:  # whoever decodes the file says what is wrong with it, and names it
            digest.update(hashlib.sha256(b"").digest())
    return digest.hexdigest()[:16]


def fingerprints_of_files(each: Iterable[Iterable[str | os.PathLike[str]]]) -> list[str]:
    """`fingerprint_of_files` of each of several lists of files, a few at a time."""
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        return list(pool.map(fingerprint_of_files, each))


def exclusive(directory: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Hold `directory` for this process; a second run that wants it gets a UserError.

    The lock is the operating system's (`flock` on `.lock`), so it dies with its process.
    """
    return _held(Path(directory), fcntl.LOCK_EX)


def shared(directory: str | os.PathLike[str]) -> contextlib.AbstractContextManager[None]:
    """Hold `directory` beside others that hold it shared; UserError while a process holds it exclusively."""
    return _held(Path(directory), fcntl.LOCK_SH)


@contextlib.contextmanager
def _held(directory: Path, kind: int) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a+", encoding="utf-8") as lock:
        if not _flock(lock, kind):
            raise UserError(
                f"{directory} is being written by {_holder(lock)}: wait for it, or choose another output folder"
            )
        _sign(lock)
        yield


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], quietly: bool = False) -> Iterator[None]:
    """Hold the file `path`, once no other process holds it; prints that it waits, unless `quietly`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as lock:
        if not _flock(lock, fcntl.LOCK_EX):
            if not quietly:
                print(f"{path} is held by {_holder(lock)}: waiting for it", file=sys.stderr, flush=True)
            with contextlib.suppress(OSError):  # see _flock
                fcntl.flock(lock, fcntl.LOCK_EX)
        _sign(lock)
        yield


def _flock(lock: TextIO, kind: int) -> bool:
    """Whether the lock could be had at once. On a file system that has no locks it always can.

    Such file systems answer with whatever error they like (ENOLCK, ENOSYS, EINVAL, EIO, EPERM, ...); only one of them
    means that another process holds the lock.
    """
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _holder(lock: TextIO) -> str:
    lock.seek(0)
    return lock.read().strip() or "another process"


def _sign(lock: TextIO) -> None:
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}")
    lock.flush()
