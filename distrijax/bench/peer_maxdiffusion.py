"""A step of the U-Net in maxdiffusion, the other SDXL in JAX, as its own settings for SDXL have it on a GPU.

These are `attention_kernel="dot_product"` and `split_head_dim=True` (`configs/base_xl.yml`). Its GELU is the tanh
approximation and the epsilon of the group norms before its transformers 1e-5 in place of 1e-6, so that its predictions
are 3.7e-5 from diffusers' (relative L2, fp32), where ours are 3e-6.
"""

import dataclasses
import re
import time
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.bench.peer import TIMESTEP, Inputs, Peer, inputs
from distrijax.bench.step import Case
from distrijax.bench.timing import Work
from distrijax.errors import DistrijaxError

HOME = "https://github.com/AI-Hypercomputer/maxdiffusion"
GROUPS = 32  # written into its layers, whatever the configuration says
_FLAX_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}  # of torch's tensor in Flax' order: [h, w, I, O] and [I, O]

Names = dict[tuple[str, ...], tuple[str, tuple[int, ...]]]


def check(case: Case) -> None:
    """Raises DistrijaxError if maxdiffusion is not installed or cannot be imported, or its U-Net is another."""
    if find_spec("maxdiffusion") is None:
        raise DistrijaxError(f"to compare with maxdiffusion, install it: pip install git+{HOME}.git")
    if case.model.configs["unet"].get("norm_num_groups", GROUPS) != GROUPS:
        raise DistrijaxError(f"maxdiffusion's group norms have {GROUPS} groups, those of {case.model.name} have not")
    from flax.core import meta
    from flax.traverse_util import flatten_dict

    latents, *rest = _arguments(inputs(case), case.dtype)
    made = jax.eval_shape(_unet(case).init, {"params": jax.random.key(0)}, jnp.moveaxis(latents, 3, 1), *rest)
    theirs = {path: leaf.shape for path, leaf in flatten_dict(meta.unbox(made["params"])).items()}
    shapes = case.model.blueprints["unet"].shapes
    ours = {path: tuple(shapes[name][i] for i in axes) for path, (name, axes) in _names(case).items()}
    if odd := sorted(set(theirs.items()) ^ set(ours.items())):
        raise DistrijaxError(
            f"maxdiffusion cannot make the U-Net of {case.model.name}: {len(odd)} parameters differ, such as "
            f"{'.'.join(odd[0][0])} {list(odd[0][1])}; leave it out"
        )


def peer(case: Case, arrays: dict[str, Any]) -> Peer:
    """With these weights, path -> array; linear layers share theirs, convolutions get theirs in Flax' order."""
    unet, params = _unet(case), dict[str, Any]()
    for path, (ours, axes) in _names(case).items():
        node = params
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = arrays[ours] if axes == tuple(sorted(axes)) else jnp.transpose(arrays[ours], axes)
    arguments = _arguments(inputs(case), case.dtype)
    start = time.perf_counter()
    # Pixels come first in ours: the transpositions at its door are left to the compiler, which drops them.
    program = jax.jit(
        lambda params, latents, *rest: jnp.moveaxis(
            unet.apply({"params": params}, jnp.moveaxis(latents, 3, 1), *rest, return_dict=False)[0], 1, 3
        )
    )
    compiled = program.lower(params, *arguments).compile()
    seconds = time.perf_counter() - start
    return Peer(
        {"maxdiffusion": Work(lambda _: compiled(params, *arguments))},
        {"maxdiffusion": seconds},
        lambda: np.asarray(compiled(params, *arguments), np.float64),
    )


def _unet(case: Case) -> Any:
    try:
        from maxdiffusion.models.unet_2d_condition_flax import FlaxUNet2DConditionModel
    except ImportError as error:
        raise DistrijaxError(f"maxdiffusion is there and cannot be imported: {error}; see {HOME}") from error
    known = {field.name for field in dataclasses.fields(FlaxUNet2DConditionModel)} - {"parent", "name"}
    config = {key: _hashable(value) for key, value in case.model.configs["unet"].items() if key in known}
    dtype = jnp.dtype(case.dtype)
    return FlaxUNet2DConditionModel(**config | {"split_head_dim": True, "dtype": dtype, "weights_dtype": dtype})


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _arguments(given: Inputs, dtype: str) -> tuple[Any, ...]:
    # Of a scalar timestep it would make one of its own dtype: 501 is 500 in bf16.
    times = jnp.full(len(given.latents), TIMESTEP, jnp.float32)
    added = {"text_embeds": jnp.asarray(given.pooled, dtype), "time_ids": jnp.asarray(given.ids, dtype)}
    return jnp.asarray(given.latents, dtype), times, jnp.asarray(given.context, dtype), added


def _names(case: Case) -> Names:
    """Path of its parameter -> path of ours, and the axes of ours in its order."""
    plan, names = case.model.blueprints["unet"], Names()
    table = plan.table()
    for path, shape in plan.shapes.items():
        entry = table.to_torch(path)
        assert entry is not None, path
        names[_renamed(entry.name, len(shape))] = path, tuple(entry.axes[i] for i in _FLAX_AXES[len(shape)])
    return names


def _renamed(name: str, dimensions: int) -> tuple[str, ...]:
    """Torch's name of a parameter as Flax' linen has it: a list's number is part of the name."""
    *layers, leaf = re.sub(r"\.(\d+)", r"_\1", name).split(".")
    leaf = leaf if leaf == "bias" else "scale" if dimensions == 1 else "kernel"
    return *layers, leaf
