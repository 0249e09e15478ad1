"""A checkpoint that has been opened and checked but not read: what every format is read into, and written from."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from distrijax.checkpoint.build import Blueprint
from distrijax.checkpoint.tensors import Tensor
from distrijax.checkpoint.tokenizers import Files
from distrijax.errors import DistrijaxError

Placement: TypeAlias = jax.Device | Sharding

COMPONENTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@dataclasses.dataclass(frozen=True)
class Component:
    """One model of a checkpoint.

    config: its config.json, word for word.
    tensors: path -> parameter in our layout.
    prefix: what a text encoder's names begin with in torch files of this origin.
    where: file or folder, for messages.
    """

    name: str
    config: Mapping[str, Any]
    blueprint: Blueprint
    tensors: Mapping[str, Tensor]
    where: str
    prefix: str = ""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> np.dtype:
        """The parameters' common dtype; float32 if they have several, or float64, which no model computes in."""
        dtypes = {tensor.dtype for tensor in self.tensors.values()}
        return dtypes.pop() if len(dtypes) == 1 and np.dtype(np.float64) not in dtypes else np.dtype(np.float32)

    def stream(
        self, dtype: DTypeLike | None = None, placement: Placement | None = None
    ) -> Iterator[tuple[str, np.ndarray | jax.Array]]:
        """(path, array) of every parameter, one after another: NumPy's, or on a device if `placement` is given.

        dtype: cast to it; None leaves each as it is stored.
        Raises DistrijaxError if a value is beyond float16.
        """
        for path, tensor in self.tensors.items():
            array = cast(tensor.load(), dtype, f"{self.where}: {path}")
            yield path, array if placement is None else put(array, placement)


@dataclasses.dataclass(frozen=True)
class Source:
    """A whole checkpoint.

    components: by folder name; `text_encoder` is absent in a refiner.
    scheduler: scheduler_config.json. index: model_index.json. tokenizers: by folder name.
    """

    where: str
    components: Mapping[str, Component]
    scheduler: Mapping[str, Any]
    index: Mapping[str, Any]
    tokenizers: Mapping[str, Files]

    @property
    def nbytes(self) -> int:
        return sum(component.nbytes for component in self.components.values())


def put(array: np.ndarray, placement: Placement) -> jax.Array:
    """On a device, or on each its part; where some are another process's, that one has the same array."""
    if isinstance(placement, jax.Device) or placement.is_fully_addressable:
        return jax.device_put(array, placement)
    # `device_put` would first compare the array between all processes, a gather of the whole model.
    return jax.make_array_from_callback(array.shape, placement, lambda part: array[part])


def cast(array: np.ndarray, dtype: DTypeLike | None, what: str) -> np.ndarray:
    """A contiguous array of `dtype`."""
    if dtype is not None and array.dtype != dtype:
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
        check_finite(array, what)
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[-1], 256):  # by columns: four times as fast as at once, for a transposed matrix
        copy[..., start : start + 256] = array[..., start : start + 256]
    return copy


def check_finite(array: np.ndarray | jax.Array, what: str) -> None:
    """After a cast to float16, whose largest value is 65504: an infinity there would only show as a black picture."""
    finite = np.isfinite if isinstance(array, np.ndarray) else jnp.isfinite
    if array.dtype == np.float16 and not finite(array).all():
        raise DistrijaxError(f"{what}: holds values that float16 cannot (above 65504, or not finite); use bfloat16")
