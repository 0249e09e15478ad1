"""Building models: the names of their layers, and their structure without weights."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

M = TypeVar("M", bound=nnx.Module)


def set_paths(model: nnx.Module) -> None:
    """Give every layer that asks the exchange object its own name, e.g. `down_blocks.1.resnets.0.conv1`."""
    for path, module in nnx.iter_modules(model):
        if hasattr(module, "path"):
            module.path = ".".join(map(str, path))


class _OneKey:
    """Stands for `nnx.Rngs` where nothing is drawn: its counters make tracing full SDXL take 40 s instead of 1."""

    def __init__(self) -> None:
        self.key = jax.random.key(0)

    def params(self) -> Array:
        return self.key


def abstract(model: Callable[..., M], config: Any, dtype: DTypeLike) -> M:
    """`model(config, dtype)` with `jax.ShapeDtypeStruct`s for weights: shapes and names, no memory, no arithmetic."""
    return nnx.eval_shape(lambda: model(config, dtype, rngs=_OneKey()))
