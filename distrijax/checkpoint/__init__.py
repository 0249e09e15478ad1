"""Checkpoints: read, converted, written."""

from distrijax.checkpoint.load import Components, convert, export, load, open_source
from distrijax.checkpoint.tokenizers import tokenizer_folder

__all__ = ["Components", "convert", "export", "load", "open_source", "tokenizer_folder"]
