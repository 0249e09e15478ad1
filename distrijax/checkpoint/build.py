"""From a configuration to a module: first its shapes alone, then the module around arrays that are already in place."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from distrijax.checkpoint.tables import Table, text_encoder_table, unet_table, vae_table
from distrijax.checkpoint.tensors import Shape
from distrijax.config import TextEncoderConfig, UNetConfig, VAEConfig
from distrijax.errors import DistrijaxError
from distrijax.models.text_encoder import TextEncoder
from distrijax.models.unet import UNet
from distrijax.models.vae import VAE
from distrijax.nn.build import abstract

Config = UNetConfig | VAEConfig | TextEncoderConfig
MODELS: dict[type, type[nnx.Module]] = {UNetConfig: UNet, VAEConfig: VAE, TextEncoderConfig: TextEncoder}


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A model before it has weights: its configuration, and the shape of every parameter by path."""

    config: Config
    shapes: Mapping[str, Shape]

    def table(self, prefix: str = "text_model.") -> Table:
        """The conversion table; `prefix` is for text encoders, see `text_encoder_table`."""
        if isinstance(self.config, UNetConfig):
            return unet_table(self.config.use_linear_projection)
        if isinstance(self.config, VAEConfig):
            return vae_table()
        return text_encoder_table(prefix)

    def build(self, arrays: Mapping[str, jax.Array], dtype: DTypeLike) -> Any:
        """The module, of `dtype`, holding `arrays` (path -> array of that dtype)."""
        graph, variables = _structure(self.config, jnp.dtype(dtype).name)
        filled = [(path, variable.replace(arrays[".".join(map(str, path))])) for path, variable in variables]
        return nnx.merge(graph, nnx.from_flat_state(filled))

    @property
    def parameters(self) -> int:
        return sum(map(math.prod, self.shapes.values()))


def blueprint(name: str, json: Mapping[str, Any], where: str, *, with_projection: bool | None = None) -> Blueprint:
    """Of the component called `name` (unet, vae, text_encoder, text_encoder_2) with the config.json `json`.

    where: the file, for messages.
    Raises DistrijaxError if the configuration is not supported.
    """
    try:
        config: Config
        if name == "unet":
            config = UNetConfig.from_json(json)
        elif name == "vae":
            config = VAEConfig.from_json(json)
        else:
            config = TextEncoderConfig.from_json(json, with_projection=with_projection)
        _, variables = _structure(config, "float32")
    except (ValueError, TypeError, IndexError, KeyError, AttributeError) as error:  # of a value the config let through
        raise DistrijaxError(f"{where}: {error}") from error
    return Blueprint(config, {".".join(map(str, path)): tuple(value.get_value().shape) for path, value in variables})


@functools.lru_cache(maxsize=16)  # full SDXL takes a second to trace, and the same structure is wanted twice or more
def _structure(config: Config, dtype: str) -> tuple[Any, list[tuple[tuple[Any, ...], Any]]]:
    model: Any = MODELS[type(config)]
    graph, state = nnx.split(abstract(model, config, jnp.dtype(dtype)))
    return graph, list(nnx.to_flat_state(state))
