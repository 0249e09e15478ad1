"""The autoencoder spread over devices: the same picture, from a fraction of the memory on each."""

import json
from functools import cache, partial
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parallel_helpers import relative, with_random_weights

from distrijax import Parallel
from distrijax.config import VAEConfig
from distrijax.models.vae import VAE
from distrijax.nn import attention
from distrijax.nn.module import Weights, abstract
from distrijax.parallel.options import for_autoencoder
from distrijax.sampling import programs

# fp32, relative L2: sums in another order; 1e-7 to 2e-7 measured.
NEAR = 1e-5
SMALL = {"block_out_channels": [8, 8, 8, 16], "layers_per_block": 1, "norm_num_groups": 4, "scaling_factor": 0.5}
UNOPTIMISED = {"xla_backend_optimization_level": 0}  # machine code alone: half the time, and the same buffers


@cache
def vae() -> Weights[VAE]:
    return Weights.of(with_random_weights(VAE, VAEConfig.from_json(SMALL)))


@cache
def decoded(parallel: Parallel, height: int, width: int, padding: int) -> np.ndarray:
    """Both of two pictures, from latents that have `padding` rows too many, as they come from the U-Net."""
    rng = np.random.RandomState(0)
    latents = 0.3 * rng.randn(2, height, width, 4).astype(np.float32)
    latents = np.pad(latents, ((0, 0), (0, padding), (0, 0), (0, 0)), constant_values=np.nan)
    choices: Any = {"parallel": parallel, "height": height}
    program = jax.jit(partial(programs.decode, **choices), compiler_options=UNOPTIMISED)
    return np.concatenate([program(vae(), latents, np.int32(i))[0] for i in range(2)])


@cache
def encoded(parallel: Parallel, height: int, width: int) -> Any:
    image = np.random.RandomState(0).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)
    return jax.jit(partial(programs.encode, parallel=parallel), compiler_options=UNOPTIMISED)(vae(), image)


SPREAD = [
    Parallel(patch=2, mode="full_sync"),
    Parallel(patch=3, mode="full_sync", emulate=True),
    Parallel(patch=8, mode="full_sync"),  # slabs of two rows of latents: five are used, the last three devices empty
]


@pytest.mark.parametrize("parallel", SPREAD, ids=lambda p: f"{p.patch}")
def test_decoding_is_that_of_one_device(parallel: Parallel) -> None:
    whole = decoded(Parallel(), 9, 5, 0)
    assert whole.shape == (2, 72, 40, 3)
    assert whole.std() > 0.05, "flat or clipped: it would hide any difference"
    pictures = decoded(parallel, 9, 5, 3)
    error = relative(pictures, whole)
    print(f"{parallel.patch} devices: {error:.1e}")
    assert error < NEAR


@pytest.mark.parametrize("parallel", SPREAD, ids=lambda p: f"{p.patch}")
def test_encoding_is_that_of_one_device(parallel: Parallel) -> None:
    for ours, whole in zip(encoded(parallel, 72, 40), encoded(Parallel(), 72, 40), strict=True):
        assert whole.shape == (1, 9, 5, 4)
        error = relative(ours, whole)
        print(f"{parallel.patch} devices: {error:.1e}")
        assert error < NEAR


def test_the_devices_of_both_guidance_branches_decode() -> None:
    """And of a batch over the data axis each group decodes its own pictures, whatever the mode of denoising was."""
    parallel = for_autoencoder(Parallel(data=2, cfg=2, patch=2))
    assert (parallel.data, parallel.cfg, parallel.patch) == (2, 1, 4)
    rng = np.random.RandomState(0)
    latents = 0.3 * rng.randn(2, 9, 5, 4).astype(np.float32)
    program = jax.jit(partial(programs.decode, parallel=parallel, height=9), compiler_options=UNOPTIMISED)
    assert relative(program(vae(), latents, np.int32(0))[0], decoded(Parallel(), 9, 5, 0)) < NEAR


def test_attention_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """37 queries in blocks of at most 8: five blocks of 8, three queries of which are padding."""
    rng = np.random.RandomState(0)
    q, k, v = (rng.randn(n, 2, 12).astype(np.float32) for n in (37, 21, 21))
    whole = attention.attend(q, k, v, 3)
    monkeypatch.setattr(attention, "_SCORES", 8 * 4 * 21 * 2 * 3)
    blocks = jax.make_jaxpr(partial(attention.attend, heads=3))(q, k, v)
    assert "length=5" in str(blocks)
    # Each query's sums are the same, in the same order or nearly so.
    np.testing.assert_allclose(attention.attend(q, k, v, 3), whole, rtol=0, atol=1e-6)


def temporaries(patch: int, pixels: int) -> int:
    """Bytes that the compiled decoder of SDXL, fp32, takes of a device besides weights, latents and picture."""
    config = json.loads((resources.files("distrijax.checkpoint") / "configs" / "vae.json").read_text())
    side = pixels // 8
    latents = jax.ShapeDtypeStruct((1, side, side, 4), jnp.float32)
    index = jax.ShapeDtypeStruct((), jnp.int32)
    parallel = Parallel(patch=patch, mode="full_sync")
    program = jax.jit(partial(programs.decode, parallel=parallel, height=side), compiler_options=UNOPTIMISED)
    shapes = Weights.of(abstract(VAE, VAEConfig.from_json(config), jnp.float32))
    compiled = program.lower(shapes, latents, index).compile()
    size = compiled.memory_analysis().temp_size_in_bytes
    print(f"{pixels}x{pixels} on {patch}: {size / 1e6:,.0f} MB")
    return size


def test_memory_of_a_large_picture_is_spread() -> None:
    """3840x3840: 37.8 GB on one device, 4.7 on each of eight. The largest activation alone is 15 GB."""
    sizes = {patch: temporaries(patch, 3840) for patch in (1, 2, 4, 8)}
    assert sizes[1] < 60e9, "a GPU has 80 GB, and the scores of all queries would take 212"
    assert sizes[8] < sizes[4] < sizes[2] < sizes[1]
    assert sizes[8] < 0.25 * sizes[1]
