"""A snapshot of the public API: names, and the names and defaults of arguments."""

import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import distrijax

pytestmark = pytest.mark.fast

SNAPSHOT = Path(__file__).parent / "data" / "public_api.txt"
COMMAND = "python tests/test_public_api.py"
LOADED = ("from_pretrained", "from_single_file", "from_pipe", "save_pretrained", "encode_prompt",
          "load_textual_inversion", "unload_textual_inversion")  # fmt: skip
ADAPTERS = ("load_lora_weights", "set_adapters", "delete_adapters", "fuse_lora", "unfuse_lora", "unload_lora_weights")
METHODS = {
    distrijax.StableDiffusionXLPipeline: LOADED + ADAPTERS,
    distrijax.StableDiffusionXLImg2ImgPipeline: LOADED,
    distrijax.StableDiffusionXLInpaintPipeline: LOADED,
    distrijax.Parallel: ("auto",),
    distrijax.VAE: ("encode", "decode"),
}


def described(name: str, function: Callable[..., Any]) -> str:
    """Return names and defaults of a function's arguments, as in `name(a, b=1, *, c)`, without types."""
    signature = inspect.signature(function)
    parameters = []
    for parameter in signature.parameters.values():
        if typing.get_origin(parameter.annotation) is typing.Unpack:  # **options: Unpack[a TypedDict]
            options = typing.get_args(parameter.annotation)[0].__annotations__
            parameters += [inspect.Parameter(option, parameter.KEYWORD_ONLY, default=...) for option in options]
        elif parameter.name not in ("self", "cls"):
            parameters.append(parameter.replace(annotation=parameter.empty))
    text = str(inspect.Signature(parameters)).replace("=Ellipsis", "=...")
    text = re.sub(r"<class '[\w.]*?(\w+)'>|<[\w.]*?(\w+) object at \w+>", r"\1\2", text)  # a dtype, or an exchange
    return "\n".join(textwrap.wrap(name + text, 100, subsequent_indent="    ", break_long_words=False))


def public_api() -> str:
    """Return every public name, with the signatures of what can be called."""
    lines = []
    for name in sorted(distrijax.__all__):
        public = getattr(distrijax, name)
        if inspect.isfunction(public):
            lines.append(described(name, public))
        elif isinstance(public, dict):
            lines.append("\n".join(textwrap.wrap(f"{name}: {', '.join(public)}", 100, subsequent_indent="    ")))
        elif issubclass(public, Exception):
            lines.append(f"{name}: {', '.join(base.__name__ for base in public.__bases__)}")
        else:
            lines.append(described(name, public.__init__))
            calls = ["__call__"] if "__call__" in vars(public) else []
            calls += ["from_config", "schedule"] if hasattr(public, "schedule") else []
            calls += METHODS.get(public, ())
            lines += [described(f"{name}.{call}", getattr(public, call)) for call in calls]
    return "\n".join(lines) + "\n"


def test_snapshot() -> None:
    """Users' code depends on these names and defaults: a change of them belongs in the change log."""
    now, before = public_api(), SNAPSHOT.read_text()
    changes = "\n".join(difflib.unified_diff(before.split("\n"), now.split("\n"), "snapshot", "now", n=0, lineterm=""))
    assert now == before, f"the public API has changed; if it should, run: {COMMAND}\n{changes}"


def test_all_names_are_there() -> None:
    names: dict[str, Any] = {}
    exec("from distrijax import *", names)
    assert names.keys() >= set(distrijax.__all__)
    assert len(set(distrijax.__all__)) == len(distrijax.__all__)


if __name__ == "__main__":
    SNAPSHOT.write_text(public_api())
