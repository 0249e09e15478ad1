"""The parser of all commands, and what they say on stderr."""

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from distrijax import __version__
from distrijax.cli import bench, convert, generate, plan
from distrijax.cli.language import in_options
from distrijax.errors import DistrijaxError
from distrijax.runtime.watch import leave


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        kinds = {"int": "a whole number", "float": "a number"}
        message = re.sub(
            r"argument (--\S+): invalid (int|float) value: (.*)",
            lambda match: f"{match[1]} is {match[3]}; it must be {kinds[match[2]]}",
            message,
        )
        self.exit(2, f"distrijax: error: {message}; see {self.prog} --help\n")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    parser = parsers()
    options = parser.parse_args(arguments)
    say = partial(_say, options.names)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("distrijax: warning: %(message)s"))
    logging.getLogger("distrijax").addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, category, *_: say(
                "warning" if category is UserWarning else category.__name__, str(message)
            )
            options.run(options)
    except (DistrijaxError, OSError) as error:
        parts = [str(error)]
        if isinstance(error, OSError):  # a full disk, or a folder that may not be written
            parts = [str(part) for part in (error.filename, error.strerror or error) if part]
        say("error", ": ".join(parts))
        leave(": ".join(parts), 2)
        return 2
    finally:
        logging.getLogger("distrijax").removeHandler(handler)
    return 0


def parsers() -> Parser:
    """Return the parser; each command also sets `names`, those of its options."""
    parser = Parser(prog="distrijax", description="Stable Diffusion XL in JAX and Flax.")
    parser.add_argument("--version", action="version", version=f"distrijax {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (generate, convert, plan, bench):
        command.add(commands)
    for command_parser in commands.choices.values():
        command_parser.set_defaults(names=re.findall(r"(?<=--)[a-z][\w-]+", command_parser.format_help()))
    return parser


def _say(names: Sequence[str], kind: str, message: str) -> None:
    print(f"distrijax: {kind}: {in_options(message, names)}", file=sys.stderr)
