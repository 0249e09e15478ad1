"""`distrijax convert`: checkpoints from one format to another."""

import argparse
import sys
from pathlib import Path

from distrijax.checkpoint import convert, verify
from distrijax.checks import DTYPES
from distrijax.cli.options import PARTS, SOURCES, Commands, add_options
from distrijax.errors import DistrijaxError


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "convert",
        help="convert a checkpoint",
        description="Convert SDXL weights: from a diffusers folder, a hub id or an original .safetensors file to a "
        "checkpoint that loads fast and straight to each device; or from any of these to a diffusers folder. The "
        "target appears only when it is complete.",
    )
    command.set_defaults(run=_convert)
    command.add_argument("source", help=SOURCES)
    command.add_argument("target", type=Path, nargs="?", help="the folder to write")
    command.add_argument(
        "--to", choices=("distrijax", "diffusers"), default="distrijax", help="format to write (default: distrijax)"
    )
    command.add_argument("--dtype", choices=DTYPES, help="cast the weights (default: every tensor keeps its own dtype)")
    add_options(
        command,
        *PARTS,
        ("--scheduler", str, "SOURCE", "a scheduler, or its name, in place of the checkpoint's own"),
        ("--target-variant", str, "NAME", "of the files that --to diffusers writes"),
    )
    command.add_argument(
        "--overwrite", action="store_true", help="replace a checkpoint at the target, and what a killed run left there"
    )
    command.add_argument(
        "--verify",
        action="store_true",
        help="read what was written, or the source if there is no target, and compare every tensor with its checksum",
    )
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _convert(options: argparse.Namespace) -> None:
    names = ("to", "dtype", "variant", "unet", "vae", "scheduler", "tokenizer", "config", "overwrite", "target_variant")
    shared = {name: getattr(options, name) for name in names} | {"progress": not options.quiet}
    if options.target is None and not options.verify:
        raise DistrijaxError("there is no target; name the folder to write, or say --verify to check the source")
    written = options.source if options.target is None else convert(options.source, options.target, **shared)
    if options.verify:
        print(f"{verify(written)} tensors are as they were written", file=sys.stderr)
    print(written)
