"""A step of the U-Net in maxdiffusion, the other SDXL in JAX, with its own settings for SDXL on a GPU.

These are `attention_kernel="dot_product"` and `split_head_dim=True` (`configs/base_xl.yml`). Its GELU is the tanh
approximation, and the group norms before its transformers have an epsilon of 1e-5 in place of 1e-6: its predictions are
3.7e-5 from diffusers' (relative L2, fp32), where ours are 3e-6.
"""

import dataclasses
import re
import time
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from unet_step import TIMESTEP, PeerSteps, StepInputs, Weights

from distrijax.errors import DistrijaxError
from distrijax.tools.bench.timing import TimedFunction
from distrijax.tools.workload import Workload

HOME = "https://github.com/AI-Hypercomputer/maxdiffusion"
GROUPS = 32  # hard-coded in its layers, whatever the configuration says
_FLAX_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # of torch's tensor in Flax's order: [h, w, I, O] and [I, O]

Names = dict[tuple[str, ...], tuple[str, tuple[int, ...]]]


def check(workload: Workload) -> None:
    """Raise DistrijaxError if maxdiffusion is not installed or cannot be imported, or its U-Net differs."""
    model = workload.model
    if find_spec("maxdiffusion") is None:
        raise DistrijaxError(f"to compare with maxdiffusion, install it: pip install git+{HOME}.git")
    if model.components["unet"].json.get("norm_num_groups", GROUPS) != GROUPS:
        raise DistrijaxError(f"maxdiffusion's group norms have {GROUPS} groups, those of {model.name} do not")
    from flax.core import meta
    from flax.traverse_util import flatten_dict

    latents, *rest = _arguments(workload)
    shapes = jax.eval_shape(_unet(workload).init, {"params": jax.random.key(0)}, jnp.moveaxis(latents, 3, 1), *rest)
    theirs = {path: leaf.shape for path, leaf in flatten_dict(meta.unbox(shapes["params"])).items()}
    own = model.components["unet"].shapes
    ours = {path: tuple(own[name][i] for i in axes) for path, (name, axes) in _names(workload).items()}
    if different := sorted(set(theirs.items()) ^ set(ours.items())):
        path, shape = different[0]
        raise DistrijaxError(
            f"maxdiffusion cannot make the U-Net of {model.name}: {len(different)} parameters differ, such as "
            f"{'.'.join(path)} {list(shape)}; leave it out"
        )


def build(workload: Workload, weights: Weights, *, torch_modes: Sequence[str]) -> PeerSteps:
    """Return a step with these weights: linear layers share ours, convolutions get a copy in Flax's order of axes."""
    unet, params = _unet(workload), dict[str, Any]()
    for path, (ours, axes) in _names(workload).items():
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = weights[ours] if axes == tuple(sorted(axes)) else jnp.transpose(weights[ours], axes)
    arguments = _arguments(workload)
    start = time.perf_counter()
    # Channels come last in ours: the compiler drops the transposes at its door.
    program = jax.jit(
        lambda params, latents, *rest: jnp.moveaxis(
            unet.apply({"params": params}, jnp.moveaxis(latents, 3, 1), *rest, return_dict=False)[0], 1, 3
        )
    )
    compiled = program.lower(params, *arguments).compile()
    seconds = time.perf_counter() - start

    def run() -> jax.Array:
        return compiled(params, *arguments)

    return PeerSteps(
        {"maxdiffusion": TimedFunction(lambda: run, compile_seconds=seconds)}, lambda: np.asarray(run(), np.float64)
    )


def _unet(workload: Workload) -> Any:
    try:
        from maxdiffusion.models.unet_2d_condition_flax import FlaxUNet2DConditionModel
    except ImportError as error:
        raise DistrijaxError(f"maxdiffusion is installed but cannot be imported: {error}; see {HOME}") from error
    known = {field.name for field in dataclasses.fields(FlaxUNet2DConditionModel)} - {"parent", "name"}
    config = {key: _hashable(value) for key, value in workload.model.components["unet"].json.items() if key in known}
    dtype = jnp.dtype(workload.dtype)
    return FlaxUNet2DConditionModel(**config | {"split_head_dim": True, "dtype": dtype, "weights_dtype": dtype})


def _hashable(value: object) -> object:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _arguments(workload: Workload) -> tuple[Any, ...]:
    inputs, dtype = StepInputs.of(workload), workload.dtype
    # It would cast a scalar timestep to its own dtype: 501 is 500 in bf16.
    times = jnp.full(len(inputs.latents), TIMESTEP, jnp.float32)
    added = {"text_embeds": jnp.asarray(inputs.pooled, dtype), "time_ids": jnp.asarray(inputs.ids, dtype)}
    return jnp.asarray(inputs.latents, dtype), times, jnp.asarray(inputs.context, dtype), added


def _names(workload: Workload) -> Names:
    """Map the path of each of its parameters to the path of ours, and the axes of ours in its order."""
    component, names = workload.model.components["unet"], Names()
    table = component.table()
    for path, shape in component.shapes.items():
        entry = table.to_torch(path)
        names[renamed(entry.name, len(shape))] = path, tuple(entry.axes[i] for i in _FLAX_AXES[len(shape)])
    return names


def renamed(name: str, dimensions: int) -> tuple[str, ...]:
    """Return torch's name of a parameter as Flax's linen has it: an index in a list is part of the name before it."""
    *layers, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    leaf = leaf if leaf == "bias" else "scale" if dimensions == 1 else "kernel"
    return *layers, leaf
