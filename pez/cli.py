"""What every script's command line shares: one-line errors, `--debug`, arguments after a bare `--`."""

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
from types import FrameType
from typing import Any, NoReturn

from pez.errors import UserError, check_choice


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that shows defaults and answers a bad argument with one line and exit code 2."""

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(**kwargs)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            check_choice("/".join(action.option_strings) or str(action.metavar or action.dest), value, action.choices)


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

    A UserError and an operating system error that names its file are one line each; anything else is a defect
    and keeps its traceback. With `--debug` every error shows its traceback. Ctrl-C (code 130) and SIGTERM (143)
    both unwind, so that temporary files go.
    """
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    arguments = script_arguments(argv)
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name never ends a run, whatever the locale
    try:
        with _sigterm_unwinds():
            return main(parser.parse_args(arguments)) or 0
    except (UserError, OSError) as error:
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


def _line(error: UserError | OSError) -> str | None:
    """The one line for an error that a user can mend; None for any other."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if "No usable temporary directory" in str(error):  # tempfile's
        return "no folder for temporary files: set TMPDIR to a folder you may write"
    name = error.filename or "the output folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left while writing {name}: free some, or set PEZ_ARTIFACTS_DIR to another disk, and rerun"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission for {name}: choose a folder you may write, or change its permissions"
    if error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}: choose another folder or name"
    return None
