"""How bad input ends: one line, `error: what is wrong; what to do`, and exit code 2."""
import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can put right; its message says what is wrong and what to do."""


def run_cli(main: Callable[[], None]) -> None:
    """Run a command's `main`; an error that its user can put right ends in one line and exit 2."""
    for stream in (sys.stdout, sys.stderr):  # of a character that a terminal lacks, show the code
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output is gone, as `head` is after its ten lines
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _fail(f"no room is left to write {error.filename or 'a file'}; free some space and run "
                  "the same command again")
        if error.filename:  # no permission, a file where a folder is needed, a path in /proc, ...
            _fail(f"{error.filename} cannot be used ({error.strerror}); check its permissions, or "
                  "name another path")
        raise


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)
