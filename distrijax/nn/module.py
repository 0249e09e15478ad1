"""Models as modules: the names of their layers, their structure without weights, and their weights as a flat tuple."""

import dataclasses
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import jax
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

C = TypeVar("C")
M = TypeVar("M", bound=nnx.Module)


class Layer(nnx.Module):
    """A layer with a name of its own, such as `unet.down_blocks.1.resnets.0.conv1`; see `name_layers`."""

    path: str = ""


def name_layers(model: nnx.Module, root: str) -> None:
    """Name every layer of `model` by its place under `root`, which tells two networks of one step apart."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, Layer):
            module.path = ".".join([root, *map(str, path)])


class _OneKey:
    """Stands in for `nnx.Rngs` where nothing is drawn: its counters make tracing full SDXL take 40 s instead of 1."""

    def __init__(self) -> None:
        self.key = jax.random.key(0)

    def params(self) -> Array:
        return self.key


def abstract(model: Callable[..., M], config: C, dtype: DTypeLike) -> M:
    """Return `model(config, dtype)` with `jax.ShapeDtypeStruct`s for weights: no memory, no arithmetic."""
    return nnx.eval_shape(lambda: model(config, dtype, rngs=_OneKey()))


class Structure:
    """All of a module but its arrays. Equal structures are one object, so comparing them costs nothing."""

    _known: dict["Structure", "Structure"] = {}  # noqa: RUF012

    def __init__(self, graph: nnx.GraphDef, tree: jax.tree_util.PyTreeDef):
        self.graph, self.tree = graph, tree
        self._hash = hash((graph, tree))

    @classmethod
    def of(cls, graph: nnx.GraphDef, tree: jax.tree_util.PyTreeDef) -> "Structure":
        structure = cls(graph, tree)
        return cls._known.setdefault(structure, structure)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Structure) and (self.graph, self.tree) == (other.graph, other.tree)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Weights(Generic[M]):
    """A module as an argument of a compiled program: its arrays in a flat tuple.

    Finding the 1,680 arrays of SDXL's U-Net in its 1,413 objects takes the host 10 to 29 ms, longer than a step on
    eight GPUs. So they are collected once a call of a pipeline, and not in every dispatch.
    """

    arrays: tuple[Array, ...]
    structure: Structure = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, module: M) -> Self:
        """Collect the arrays of `module`, or their shapes if it is abstract."""
        graph, state = nnx.split(module)
        arrays, tree = jax.tree.flatten(state)
        return cls(tuple(arrays), Structure.of(graph, tree))

    def module(self) -> M:
        """Return the module with these arrays."""
        return nnx.merge(self.structure.graph, jax.tree.unflatten(self.structure.tree, self.arrays))
