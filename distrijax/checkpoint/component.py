"""Checkpoints before their weights are read, and the models made of them.

Every format is read into a `Checkpoint` of `Component`s and written from one. Only headers and configurations are read
until a component's tensors are streamed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike

from distrijax.checkpoint import ldm
from distrijax.checkpoint.tables import Table, convert, text_encoder_table, tiny_vae_table, unet_table, vae_table
from distrijax.checkpoint.tensors import Shape, Tensor
from distrijax.checkpoint.tokenizers import Files
from distrijax.config import AutoencoderTinyConfig, TextEncoderConfig, UNetConfig, VAEConfig
from distrijax.config.entry import Json
from distrijax.config.text_encoder import WITH_PROJECTION
from distrijax.config.unet import inpainting_channels
from distrijax.errors import DistrijaxError
from distrijax.models.autoencoder_tiny import Autoencoder, AutoencoderTiny
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.models.vae import VAE
from distrijax.nn.conv import stored_axes
from distrijax.nn.module import abstract
from distrijax.schedulers import Scheduler

AutoencoderConfig: TypeAlias = VAEConfig | AutoencoderTinyConfig
Config: TypeAlias = UNetConfig | AutoencoderConfig | TextEncoderConfig
Module: TypeAlias = UNet | Autoencoder | TextEncoder
Placement: TypeAlias = jax.Device | Sharding
Stream: TypeAlias = Iterator[tuple[str, np.ndarray | jax.Array]]

COMPONENTS: dict[str, tuple[type[Module], ...]] = {"unet": (UNet,), "vae": (VAE, AutoencoderTiny)}
COMPONENTS |= {"text_encoder": (TextEncoder,), "text_encoder_2": (TextEncoder,)}
_MODELS = {UNetConfig: UNet, VAEConfig: VAE, AutoencoderTinyConfig: AutoencoderTiny, TextEncoderConfig: TextEncoder}


@dataclasses.dataclass(frozen=True)
class Component:
    """One model of a checkpoint, whose weights are not in memory yet.

    Attributes:
        name: `unet`, `vae`, `text_encoder` or `text_encoder_2`.
        json: its config.json, unchanged.
        config: the same as a checked configuration.
        shapes: path -> shape of every parameter.
        where: file or folder, for messages.
        tensors: path -> parameter in our layout; empty if only the configuration is known.
        prefix: prefix of a text encoder's tensor names in torch files of this origin.
        reader: reads all tensors (same arguments as `stream`) if the format has a faster way than one by one.
        module: the model itself, if the caller passed one.
        trained: options of the scheduler that the file states beside the weights, such as the prediction type.
    """

    name: str
    json: Json
    config: Config
    shapes: Mapping[str, Shape]
    where: str
    tensors: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    prefix: str = ""
    reader: Callable[[DTypeLike | None, Placement | None], Stream] | None = None
    module: Module | None = None
    trained: Json = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, name: str, json: Json, where: str, class_name: str | None = None) -> "Component":
        """Return a component without tensors from its config.json; `class_name` is from the model_index.json."""
        try:
            config: Config
            if name == "unet":
                config = UNetConfig.from_json(json)
            elif name == "vae":
                tiny = (class_name or json.get("_class_name")) == AutoencoderTinyConfig.class_name
                config = (AutoencoderTinyConfig if tiny else VAEConfig).from_json(json)
            else:
                config = TextEncoderConfig.from_json(json, with_projection=WITH_PROJECTION.get(class_name or ""))
            _, variables = _structure(config, "float32")
        except DistrijaxError as error:
            raise DistrijaxError(f"{where}: {error}") from error
        shapes = {_dotted(path): tuple(variable.get_value().shape) for path, variable in variables}
        return cls(name, json, config, shapes, where)

    @classmethod
    def from_module(cls, name: str, module: object) -> "Component":
        """Return the component of a model in memory, whose weights are fetched from the devices when streamed."""
        if not isinstance(module, Module) or not isinstance(module, COMPONENTS[name]):
            expected = " or ".join(kind.__name__ for kind in COMPONENTS[name])
            raise DistrijaxError(
                f"{name} is a {type(module).__name__}; it must be a {expected}, or a path or hub id of one"
            )
        axes = stored_axes(module)
        tensors = {}
        for path, variable in nnx.to_flat_state(nnx.state(module, nnx.Param)):
            array = variable.get_value()
            order = axes.get(path, tuple(range(array.ndim)))
            shape, load = tuple(array.shape[axis] for axis in order), functools.partial(_fetch, array, order)
            tensors[_dotted(path)] = Tensor(shape, np.dtype(array.dtype), load, f"the given {name}")
        shapes = {path: tensor.shape for path, tensor in tensors.items()}
        json, prefix = module.config.to_json(), "text_model." if isinstance(module, TextEncoder) else ""
        return cls(name, json, module.config, shapes, f"the given {name}", tensors, prefix, module=module)

    def with_torch_tensors(
        self, state: Iterable[tuple[str, Tensor]], where: str, prefix: str = "text_model."
    ) -> "Component":
        """Return the component with its tensors, from the items of a torch state dict; raise if they do not match."""
        tensors = convert(self.table(prefix), state, self.shapes, where)
        prefix = prefix if isinstance(self.config, TextEncoderConfig) else ""
        return dataclasses.replace(self, tensors=tensors, where=where, prefix=prefix)

    def table(self, prefix: str = "text_model.") -> Table:
        """Return the conversion table; `prefix` is for text encoders, see `text_encoder_table`."""
        if isinstance(self.config, UNetConfig):
            return unet_table(self.config.use_linear_projection, ldm.unet_names(self.config))
        if isinstance(self.config, VAEConfig):
            return vae_table(ldm.vae_names(self.config))
        if isinstance(self.config, AutoencoderTinyConfig):
            return tiny_vae_table(ldm.tiny_vae_name)
        return text_encoder_table(prefix)

    def build(self, arrays: Mapping[str, jax.Array], dtype: DTypeLike) -> Module:
        """Return the module of `dtype` that holds `arrays` (path -> array of that dtype)."""
        graph, variables = _structure(self.config, jnp.dtype(dtype).name)
        leaves = [(path, variable.replace(arrays[_dotted(path)])) for path, variable in variables]
        return nnx.merge(graph, nnx.from_flat_state(leaves))

    def described(self, dtype: DTypeLike, sharding: Sharding | None) -> Module:
        """Return the module that `build` will return, with shapes for weights."""
        shapes: Any = {p: jax.ShapeDtypeStruct(s, dtype, sharding=sharding) for p, s in self.shapes.items()}
        return self.build(shapes, dtype)

    def stream(self, dtype: DTypeLike | None = None, placement: Placement | None = None) -> Stream:
        """Yield (path, array) of every parameter in turn: cast if there is a dtype, and in NumPy unless placed."""
        if self.reader is not None:
            yield from self.reader(dtype, placement)
            return
        for path, tensor in self.tensors.items():
            array = cast(tensor.load(), dtype, f"{self.where}: {path}")
            yield path, array if placement is None else put(array, placement)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def dtype(self) -> np.dtype:
        """The parameters' common dtype; float32 if they have several, or float64, which no model computes in."""
        dtypes = {tensor.dtype for tensor in self.tensors.values()}
        return dtypes.pop() if len(dtypes) == 1 and np.dtype(np.float64) not in dtypes else np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint, or a model known by name, before any weights are read.

    Attributes:
        name: its path, or the name by which it was requested.
        components: by folder name; `text_encoder` is absent in a refiner.
        index: model_index.json.
        scheduler: scheduler_config.json.
        tokenizers: the files of each tokenizer, by folder name.
    """

    name: str
    components: Mapping[str, Component]
    index: Json
    scheduler: Json
    tokenizers: Mapping[str, Files]

    @property
    def unet(self) -> UNetConfig:
        """The U-Net's configuration."""
        config = self.components["unet"].config
        assert isinstance(config, UNetConfig)
        return config

    @property
    def vae(self) -> AutoencoderConfig:
        """The autoencoder's configuration."""
        config = self.components["vae"].config
        assert isinstance(config, AutoencoderConfig)
        return config

    def with_classes(self) -> "Checkpoint":
        """Return the checkpoint with an index that names the classes of its components and its scheduler."""
        index = dict(self.index) | {"scheduler": ["diffusers", self.scheduler.get("_class_name")]}
        for name in COMPONENTS:
            config = self.components[name].config if name in self.components else None
            library = "transformers" if isinstance(config, TextEncoderConfig) else "diffusers"
            index[name] = [None, None] if config is None else [library, config.class_name]
        if self.inpaints:
            index["_class_name"] = "StableDiffusionXLInpaintPipeline"
        return dataclasses.replace(self, index=index)

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net sees a mask and a masked picture beside the latents."""
        return self.unet.in_channels == inpainting_channels(self.vae.latent_channels)

    @property
    def has_weights(self) -> bool:
        """Whether there are weights; false for a model that is known only by name."""
        return all(component.tensors for component in self.components.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(component.nbytes for component in self.components.values())

    @property
    def parameters(self) -> int:
        """Number of parameters of all components."""
        return sum(component.parameters for component in self.components.values())


@dataclasses.dataclass(frozen=True)
class Parts:
    """A checkpoint in memory, from which a pipeline is made. Refiners have no text_encoder and no tokenizer."""

    unet: UNet
    vae: Autoencoder
    text_encoder: TextEncoder | None
    text_encoder_2: TextEncoder
    tokenizer: Files | None
    tokenizer_2: Files
    scheduler: Scheduler
    index: Json


def put(array: np.ndarray, placement: Placement) -> jax.Array:
    """Place an array on a device, or its parts on several; every process must have the same array."""
    if isinstance(placement, jax.Device) or placement.is_fully_addressable:
        return jax.device_put(array, placement)
    # `device_put` would first compare the array between all processes, a gather of the whole model.
    return jax.make_array_from_callback(array.shape, placement, lambda part: array[part])


def cast(array: np.ndarray, dtype: DTypeLike | None, what: str) -> np.ndarray:
    """Return a contiguous array of `dtype`."""
    if dtype is not None and array.dtype != dtype:
        with np.errstate(over="ignore"):
            array = array.astype(dtype)
        check_finite(array, what)
    if array.flags.c_contiguous:
        return array
    copy = np.empty(array.shape, array.dtype)
    for start in range(0, array.shape[-1], 256):  # by columns, four times as fast for a transposed matrix
        copy[..., start : start + 256] = array[..., start : start + 256]
    return copy


def check_finite(array: np.ndarray | jax.Array, what: str) -> None:
    """Check that a cast to float16 has left no infinities: beyond its largest value, 65504, pictures would be black."""
    finite = np.isfinite if isinstance(array, np.ndarray) else jnp.isfinite
    if array.dtype == np.float16 and not finite(array).all():
        raise DistrijaxError(f"{what}: holds values beyond float16 (above 65504, or not finite); use bfloat16")


def _fetch(array: jax.Array, axes: Sequence[int]) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array).transpose(axes)
    if array.is_fully_replicated:
        return np.asarray(array.addressable_data(0)).transpose(axes)
    raise DistrijaxError("weights are sharded over several processes; write them from a pipeline that replicates them")


def _dotted(path: Iterable[object]) -> str:
    return ".".join(map(str, path))


@functools.lru_cache(maxsize=16)  # full SDXL takes a second to trace, and the same structure is needed more than once
def _structure(config: Config, dtype: str) -> tuple[nnx.GraphDef, list[tuple[Any, Any]]]:
    graph, state = nnx.split(abstract(_MODELS[type(config)], config, jnp.dtype(dtype)))
    return graph, list(nnx.to_flat_state(state))
