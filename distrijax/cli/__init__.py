"""The command line, a file for each command. Thin: every option is an argument of the library."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from distrijax import __version__
from distrijax.cli import bench, convert, generate, plan
from distrijax.errors import DistrijaxError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 2 a mistake of the user's, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            options.run(options)
    except DistrijaxError as error:
        print(f"distrijax: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"distrijax: error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("distrijax: interrupted", file=sys.stderr)
        return 130
    return 0


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line, without the place in the code."""
    print(f"distrijax: {'warning' if category is UserWarning else category.__name__}: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="distrijax", description="Stable Diffusion XL in JAX and Flax.")
    parser.add_argument("--version", action="version", version=f"distrijax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (generate, convert, plan, bench):
        command.add(commands)
    return parser
