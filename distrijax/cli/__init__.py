"""The command line, with a file for each command. It is thin: every option is an argument of the library."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from distrijax import __version__
from distrijax.cli import bench, convert, generate, plan
from distrijax.errors import DistrijaxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 for success, 2 for a user's mistake, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            options.run(options)
    except DistrijaxError as error:
        print(f"distrijax: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, or a folder that may not be written
        print(f"distrijax: error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("distrijax: interrupted", file=sys.stderr)
        return 130
    return 0


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning in one line, without its place in the code."""
    print(f"distrijax: {'warning' if category is UserWarning else category.__name__}: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="distrijax", description="Stable Diffusion XL in JAX and Flax.")
    parser.add_argument("--version", action="version", version=f"distrijax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (generate, convert, plan, bench):
        command.add(commands)
    return parser
