"""The command line, with a file for each command. It is thin: every option is an argument of the library."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 for success, 2 for a user's mistake, 130 if interrupted."""
    try:
        from distrijax.cli.commands import run  # takes seconds, which an interrupt ends as cleanly as the rest

        return run(arguments)
    except KeyboardInterrupt:
        print("distrijax: interrupted", file=sys.stderr)
        return 130
