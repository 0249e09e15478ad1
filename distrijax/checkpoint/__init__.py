"""Reading, converting and writing checkpoints."""

from distrijax.checkpoint.component import Checkpoint, Component, Parts
from distrijax.checkpoint.export import save_diffusers
from distrijax.checkpoint.known import KNOWN
from distrijax.checkpoint.load import DTypes, convert, export, load, load_part, verify
from distrijax.checkpoint.source import SourceOptions, find, open_source
from distrijax.checkpoint.tokenizers import tokenizer_folder

__all__ = [
    "KNOWN",
    "Checkpoint",
    "Component",
    "DTypes",
    "Parts",
    "SourceOptions",
    "convert",
    "export",
    "find",
    "load",
    "load_part",
    "open_source",
    "save_diffusers",
    "tokenizer_folder",
    "verify",
]
