"""One clear sentence and exit code 2 instead of a traceback."""

from __future__ import annotations

import atexit
import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")


class UserError(Exception):
    """Something the person at the terminal can put right. The message says what, where, and what would be right."""


def reports_errors(main: Callable[P, None]) -> Callable[P, None]:
    """Decorates a script's main function: bad input or a failing disk ends it with one sentence and exit code 2.

    `ValueError` counts as bad input only where the scripts raise it from their arguments, which they do by wrapping
    it in `UserError`; a `ValueError` out of the numerics stays a traceback, because it is a defect of ours.
    """

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            try:
                main(*args, **kwargs)
            finally:
                # Here, where a reader that has gone away is still an exception we see, and not one at shutdown.
                sys.stdout.flush()
                # The last to be registered is the first to run when Python takes itself down. All work is done or lost
                # by then: a Ctrl-C would only add a traceback.
                atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        except UserError as error:
            sys.exit(_fail(str(error)))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # `--help | head`: the reader has what it wanted. 128 + SIGPIPE is how other programs end then.
            _give_up_stdout()
            sys.exit(141)
        except OSError as error:
            _give_up_stdout()
            if not error.filename and error.errno in _FULL:
                error.filename = "standard output"  # every file's errors name it
            sys.exit(_fail(describe_os_error(error)))
        except (MemoryError, RuntimeError) as error:
            # torch's allocator raises a plain RuntimeError.
            if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                raise
            sys.exit(_fail("This does not fit into memory; choose smaller networks, fewer tasks or fewer episodes."))

    return wrapped


def one_line(error: BaseException) -> str:
    """An exception's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _give_up_stdout() -> None:
    """Where nothing can be written to it, Python's own last try must not add a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    # A name of a file may be no text.
    print(f"error: {message.encode(errors='backslashreplace').decode()}", file=sys.stderr)
    return 2


_AGAIN = "run the command again (a training that has begun: with --resume)"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

_EXPLAINED = {
    errno.ENOSPC: f"the disk is full; free some space and {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; free some space and {_AGAIN}",
    errno.EFBIG: f"the file would exceed the size limit of this process or disk; raise it and {_AGAIN}",
    errno.EACCES: "permission denied; choose a place you may write to",
    errno.EPERM: "operation not permitted; choose a place you may write to",
    errno.EROFS: "the file system is read-only; choose a place you may write to",
    errno.ENOTDIR: "a part of that path is a file, not a directory",
    errno.EISDIR: "that is a directory, not a file",
    errno.EEXIST: "a file of that name is in the way",
    errno.ENOENT: "there is no such file or directory",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENOLCK: "this file system cannot lock files, which keeps two trainings apart; choose a place on another one",
    errno.EMFILE: f"too many files are open in this process; raise the limit (ulimit -n) and {_AGAIN}",
    errno.EIO: "the disk reported an error",
}


def describe_os_error(error: OSError) -> str:
    """One sentence for a failing file operation, with the path."""
    what = _EXPLAINED.get(error.errno or 0) or error.strerror or one_line(error)
    # Some libraries name files in bytes.
    where = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
    return f"{where}: {what}." if error.filename else f"{what[0].upper()}{what[1:]}."
