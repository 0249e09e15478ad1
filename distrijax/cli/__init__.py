"""The command line, with a file for each command. It is thin: every option is an argument of the library."""

import os
import signal
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 for success, 2 for a user's mistake, 130 if interrupted."""
    try:
        _import_commands()
        from distrijax.cli.commands import run

        return run(arguments)
    except KeyboardInterrupt:
        print("distrijax: interrupted", file=sys.stderr)
        return 130


def _import_commands() -> None:
    """Import JAX and the rest, which takes seconds; an interrupt ends the process at once.

    Otherwise one that arrives while a library's C code initializes itself becomes an ImportError.
    """

    def leave(*_: object) -> None:
        print("distrijax: interrupted", file=sys.stderr, flush=True)
        os._exit(130)

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # a program that handles it otherwise
        return
    signal.signal(signal.SIGINT, leave)
    try:
        import distrijax.cli.commands  # noqa: F401
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
