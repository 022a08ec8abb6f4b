"""What every script's command line shares: numbers in their ranges, one-line errors, `--debug`, arguments after a
bare `--`, and words that never cost the work: a closed or full terminal, pipe or log file ends no run."""

import argparse
import contextlib
import errno
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from pez.errors import UserError, check_choice, check_number


@dataclass(frozen=True)
class Number:
    """The type of an option that takes numbers: `add_argument("--seed", type=Number(int, least=0))`.

    The bounds, of `pez.errors.check_number`, stand where the option does and are checked as it is parsed.
    """

    parse: type[int] | type[float]
    least: float | None = None
    above: float | None = None
    most: float | None = None
    sane: float | None = None

    @property
    def __name__(self) -> str:  # argparse's word for what it could not parse
        return self.parse.__name__

    def __call__(self, text: str) -> float:
        return self.parse(text)

    def check(self, option: str, value: float) -> None:
        """UserError, naming the option, for a number out of bounds."""
        check_number(option, value, least=self.least, above=self.above, most=self.most, sane=self.sane)


SEED = Number(int, least=0, sane=2**63 - 1)
COUNT = Number(int, least=1, sane=1_000_000)
COUNT_OR_NONE = Number(int, least=0, sane=1_000_000)
PROCESSES = Number(int, least=1, sane=1024)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults and answers a bad argument with one line and exit code 2."""

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        value = super()._get_value(action, arg_string)
        if isinstance(action.type, Number):
            action.type.check(action.option_strings[0], value)
        return value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            check_choice("/".join(action.option_strings) or str(action.metavar or action.dest), value, action.choices)


def first_line(text: str | None) -> str:
    """The first line of a docstring, which `python -OO` takes away."""
    return (text or "").partition("\n")[0]


def script_arguments(argv: Sequence[str] | None = None) -> list[str]:
    """Arguments of this script: what follows a bare `--` if there is one (as under Blender), else all."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return argv[argv.index("--") + 1 :] if "--" in argv else argv


def run_script(
    parser: argparse.ArgumentParser,
    main: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, run `main(args)` and turn what a user can mend into one line and exit code 2.

    A UserError, an operating system error that names its file, and memory or processes that run out are one line each;
    anything else is a defect and keeps its traceback. With `--debug` every error shows its traceback. Ctrl-C (code 130)
    and SIGTERM (143) both unwind, so that temporary files go.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = script_arguments(argv)
    debug = "--debug" in arguments
    _lasting_streams()
    try:
        with _sigterm_unwinds():
            return main(parser.parse_args(arguments)) or 0
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        line = _line(error)
        if line is None:
            raise
        if debug:
            traceback.print_exc()
        print(f"error: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print("interrupted: what is complete is kept; the same command goes on from there", file=sys.stderr)
        return 143 if isinstance(stopped, _Terminated) else 130


class _LastingFile(io.FileIO):
    """Standard output or error: once it cannot be written (a reader closed its pipe, a full disk), words are dropped
    and the work goes on."""

    def write(self, words: Any) -> int:
        try:
            return super().write(words) or 0
        except BlockingIOError:
            raise
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(words).nbytes


def _lasting_streams() -> None:
    """Give 0, 1 and 2 to the null device where they are closed, or the next file that is opened would be written to as
    if it were the terminal; and let neither names nor readers of standard output and error end a run."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one
            os.set_inheritable(opened, True)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or type(stream) is io.TextIOWrapper and stream.fileno() == descriptor:  # not a test's
            if stream is not None:
                stream.flush()
            interactive = os.isatty(descriptor)
            raw = _LastingFile(descriptor, "wb", closefd=False)
            wrapped = io.TextIOWrapper(
                io.BufferedWriter(raw),
                encoding=getattr(stream, "encoding", "utf-8"),
                errors="backslashreplace",  # a file's name never ends a run, whatever the locale
                line_buffering=interactive or name == "stderr",
            )
            setattr(sys, name, wrapped)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Let SIGTERM raise `_Terminated`, once, in the main thread; a second one ends the process at once."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def unwind(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:  # a forked worker has nothing to tidy up
            os.kill(os.getpid(), number)
        raise _Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _line(error: Exception) -> str | None:
    """The one line for an error that a user can mend; None for any other."""
    words = " ".join(str(error).split())
    if isinstance(error, UserError):
        return words
    if isinstance(error, MemoryError) or "memory: you tried to allocate" in words:  # Python's, NumPy's, Torch's
        return "memory ran out: close other programs, raise `ulimit -v`, or ask for less (--batch-size, --workers 0)"
    if "can't start new thread" in words or "can't allocate lock" in words:
        return "no more threads can be started: raise `ulimit -u`, or set OMP_NUM_THREADS=1 and --workers 0"
    if not isinstance(error, OSError):
        return None
    if "No usable temporary directory" in words:  # tempfile's
        return "no folder for temporary files: set TMPDIR to a folder you may write"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open ({error.filename or 'the limit'}): raise `ulimit -n`, or use fewer --workers"
    if error.errno in (errno.EAGAIN, errno.ENOMEM) and not error.filename:
        return f"no more processes or memory ({error.strerror}): raise `ulimit -u` or `-v`, or use fewer --workers"
    name = error.filename or "the output folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"no space left while writing {name}: free some, or set PEZ_ARTIFACTS_DIR to another disk, and rerun"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {name}: choose another folder, or change its permissions"
    if error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}: choose another folder or name"
    return None
