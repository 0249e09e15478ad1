"""Lowers every program for GPUs that may be absent, and prints as JSON what failed, by case. Run by test_gpu_lowering.

A process of its own, because the CUDA compiler must be found before JAX looks for devices. Nothing is compiled.
"""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from distrijax.parallel.cards import CARDS
from distrijax.tools.plan.gpus import on_absent_gpus, prepare_cuda_compiler

prepare_cuda_compiler()

from parallel_helpers import DPM, SMALLER  # noqa: E402

from distrijax import Parallel  # noqa: E402
from distrijax.config import TextEncoderConfig, UNetConfig, VAEConfig  # noqa: E402
from distrijax.models.text_encoder import TextEncoder  # noqa: E402
from distrijax.models.vae import VAE  # noqa: E402
from distrijax.nn.module import Weights, abstract  # noqa: E402
from distrijax.parallel.answers import heads  # noqa: E402
from distrijax.parallel.options import for_autoencoder  # noqa: E402
from distrijax.parallel.placement import place  # noqa: E402
from distrijax.parallel.policies import MODES, TENSOR  # noqa: E402
from distrijax.sampling import programs  # noqa: E402
from distrijax.sampling.inputs import abstract_inputs, input_shapes  # noqa: E402
from distrijax.text.prompt import encode_ids  # noqa: E402

MESHES = [(1, 1, 1), (1, 1, 3), (1, 2, 1), (2, 1, 1), (1, 2, 3), (2, 1, 2), (2, 2, 1), (2, 2, 2)]  # data, cfg, patch
HEADS = {"block_out_channels": [16, 32], "attention_head_dim": [2, 4]}  # of 8 channels each: cuDNN takes them
UNET = UNetConfig.from_json(SMALLER | HEADS)
CARD = CARDS["h100"]
ONE = on_absent_gpus(Parallel(emulate=True), CARD).devices
VAE_SIZES = {"block_out_channels": [8, 8, 8, 16], "layers_per_block": 1, "norm_num_groups": 4}
SHAPE = jax.ShapeDtypeStruct


def cases() -> Iterator[tuple[tuple[int, int, int], bool, str, str]]:
    """Yield mesh, whether it is emulated, mode and dtype."""
    for emulate in (True, False):
        yield from ((mesh, emulate, Parallel.mode, "bfloat16") for mesh in MESHES)
        yield from (((1, 2, 3), emulate, Parallel.mode, dtype) for dtype in ("float32", "float16"))
        others = [mode for mode in (*MODES, TENSOR) if mode != Parallel.mode and not (emulate and mode == TENSOR)]
        yield from (((1, 1, 3), emulate, mode, "bfloat16") for mode in others)


def mesh_of(mesh: tuple[int, int, int], emulate: bool, mode: str) -> Parallel:
    data, cfg, patch = mesh
    axes = Parallel(data=data, cfg=cfg, patch=patch, emulate=True)
    layout = dataclasses.replace(axes, devices=ONE) if emulate else on_absent_gpus(axes, CARD)
    return dataclasses.replace(layout, mode=mode)


def lower_unet(parallel: Parallel, dtype: str) -> None:
    """Lower the conditioning and both denoising programs; half precision must use cuDNN's attention."""
    inputs, layout = abstract_inputs(
        UNET, parallel=parallel, scheduler=DPM, height=5, width=4, dtype=jnp.dtype(dtype), pictures=parallel.data
    )
    text, _ = input_shapes(UNET, guided=True, pictures=parallel.data, height=5, width=4)
    condition = jax.jit(programs.condition, static_argnames="parallel")
    condition.lower(inputs.unet, *place(text, programs.TEXT, parallel), parallel=parallel.program_key)
    for _, phase in parallel.phases(parallel.warmup_steps + 2):
        choices: dict[str, Any] = {"parallel": parallel.program_key, "layout": layout, "scheduler": DPM, "phase": phase}
        lowered = programs.denoising("denoising", lambda message: None).trace(*inputs, **choices).lower()
        # In mode `tensor`, cuDNN's attention gets its name only when GSPMD partitions it.
        fused = any(name in lowered.as_text() for name in ("fmha", "CustomSPMDPartitioning"))
        assert fused == (dtype != "float32"), "cuDNN's attention is for half precision"
        shapes = jax.tree.map(lambda x: SHAPE(x.shape, x.dtype), lowered.out_info[0])
        inputs = inputs._replace(carry=place(shapes, programs.CARRY, parallel))


def lower_vae(parallel: Parallel, dtype: str) -> None:
    vae = Weights.of(abstract(VAE, VAEConfig.from_json(VAE_SIZES), jnp.dtype(dtype)))
    latents, image = (SHAPE(shape, jnp.float32) for shape in ((parallel.data, 6, 4, 4), (1, 48, 32, 3)))
    decode = jax.jit(programs.decode, static_argnames=("parallel", "height"))
    decode.lower(vae, latents, SHAPE((), jnp.int32), parallel=for_autoencoder(parallel), height=5)
    encode = jax.jit(programs.encode, static_argnames="parallel")
    encode.lower(vae, image, parallel=for_autoencoder(parallel, encoding=True))


def lower_text_encoder(dtype: str) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = TextEncoderConfig.from_json(sizes | {"projection_dim": 8, "vocab_size": 50}, with_projection=True)
    encoder = abstract(TextEncoder, config, jnp.dtype(dtype))
    traced = jax.jit(encode_ids).trace((encoder,), (SHAPE((1, 77), jnp.int32),))
    traced.lower(lowering_platforms=("cuda",))


def main() -> None:
    failures: dict[str, str | None] = {}
    for dtype in ("float32", "bfloat16", "float16"):
        failures[f"text encoder {dtype}"] = attempt(lambda dtype=dtype: lower_text_encoder(dtype))
    for mesh, emulate, mode, dtype in cases():
        parallel = mesh_of(mesh, emulate, mode)
        case = f"{'emulated' if emulate else 'real'} {mesh} {mode} {dtype}"
        failures[f"U-Net {case}"] = attempt(lambda p=parallel, dtype=dtype: lower_unet(p, dtype))
        if mode == Parallel.mode:
            failures[f"VAE {case}"] = attempt(lambda p=parallel, dtype=dtype: lower_vae(p, dtype))
    heads._SECOND_WAIT = -1e18  # attention is dealt by heads, for which these pictures are too small
    for emulate in (True, False):
        parallel = mesh_of((1, 1, 2), emulate, "full_sync")
        failures[f"U-Net dealt by heads, emulated {emulate}"] = attempt(lambda p=parallel: lower_unet(p, "bfloat16"))
    print(json.dumps(failures))


def attempt(lower: Any) -> str | None:
    try:
        lower()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return None


if __name__ == "__main__":
    main()
