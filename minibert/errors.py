"""Bad input ends in one line: `error: what is wrong; what to do`, exit code 2, no traceback."""
import errno
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can put right; its message says what is wrong and what to do."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`, turning what the user can put right into one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character shows its code
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        sys.exit(_line(str(error)))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            sys.exit(_line(f"no room left to write {error.filename or 'a file'}; free some space "
                           "and run the same command again"))
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            sys.exit(_line(f"{error.filename} cannot be read or written; check its permissions"))
        if error.errno in (errno.ENOTDIR, errno.EISDIR):
            sys.exit(_line(f"{error.filename} is a file where a folder is needed, or the other way "
                           "round; name another path"))
        raise


def _line(message: str) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return 2
