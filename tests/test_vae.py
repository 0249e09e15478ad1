"""The autoencoder against diffusers' on torch."""

import json
from importlib import resources

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference import error, load_from_torch, random_weights, to_numpy, to_torch

from distrijax.checkpoint import Component
from distrijax.config import VAEConfig
from distrijax.errors import DistrijaxError
from distrijax.nn.exchange import WHOLE

# Of the output's deviation: sums in another order, mostly 1e-6 to 4e-6. Where a group of channels hardly varies, a
# group norm magnifies them: there torch's own distance from fp64 is the measure.
FP32 = 1e-5
BF16 = 0.1

CONFIGS = {
    "factor 8": {
        "block_out_channels": [8, 16, 16, 24],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "norm_num_groups": 8,
    },
    "factor 2": {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 6,
    },
}


def reference_vae(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return random_weights(diffusers.AutoencoderKL(**CONFIGS[name]))


@pytest.mark.parametrize(("name", "size"), [("factor 8", (48, 40)), ("factor 2", (10, 22))])
def test_encode_and_decode(name: str, size: tuple[int, int]) -> None:
    reference = reference_vae(name)
    vae = load_from_torch("vae", CONFIGS[name], reference)
    rng = np.random.RandomState(0)
    image = rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    rows, columns = (side // vae.config.scale_factor for side in size)
    latents = rng.randn(2, rows, columns, vae.config.latent_channels).astype(np.float32)
    with torch.no_grad():
        distribution = reference.encode(to_torch(image)).latent_dist
        decoded = to_numpy(reference.decode(to_torch(latents)).sample)
        exact = to_numpy(reference.double().decode(to_torch(latents).double()).sample)
    mean, logvar = jax.jit(lambda m, x: m.encode(x, WHOLE))(vae, image)
    assert error(mean, to_numpy(distribution.mean)) < FP32
    assert error(logvar, to_numpy(distribution.logvar)) < FP32
    ours = error(jax.jit(lambda m, x: m.decode(x, WHOLE))(vae, latents), exact)
    assert ours < max(FP32, 2 * error(decoded, exact))


def test_bfloat16() -> None:
    reference = reference_vae("factor 2")
    latents = np.random.RandomState(0).randn(1, 8, 8, 6).astype(np.float32)
    with torch.no_grad():
        exact = to_numpy(reference.decode(to_torch(latents)).sample)
        theirs = error(to_numpy(reference.to(torch.bfloat16).decode(to_torch(latents).bfloat16()).sample), exact)
    vae = load_from_torch("vae", CONFIGS["factor 2"], reference_vae("factor 2"), jnp.bfloat16)
    y = jax.jit(lambda m, x: m.decode(x, WHOLE))(vae, latents)
    print(f"bf16 against fp32, largest difference over deviation: ours {error(y, exact):.3f}, torch {theirs:.3f}")
    assert y.dtype == jnp.bfloat16
    assert error(y, exact) < min(BF16, 2 * theirs)


def test_full_size_shapes() -> None:
    config = json.loads((resources.files("distrijax.checkpoint") / "configs" / "vae.json").read_text())
    plan = Component.from_json("vae", config, "vae.json")
    with torch.device("meta"):
        reference = diffusers.AutoencoderKL.from_config(config).state_dict()
    table = plan.table()
    shapes = {}
    for key, tensor in reference.items():
        entry = table.to_ours(key)
        assert entry is not None, key
        shapes[entry.name] = tuple(tensor.shape[axis] for axis in entry.axes)
    assert shapes == plan.shapes
    assert len(shapes) == 248
    assert plan.parameters == 83_653_863


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_quant_conv": False}, "use_quant_conv is False"),
        ({"shift_factor": 0.1}, "shift_factor is 0.1"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "AttnDownEncoderBlock2D"),
        ({"_class_name": "AutoencoderTiny"}, "AutoencoderTiny"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(DistrijaxError, match="not supported") as caught:
        VAEConfig.from_json(CONFIGS["factor 8"] | change)
    assert named in str(caught.value)


PLAYGROUND = {
    "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
    "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    "scaling_factor": 0.5,
}


def test_the_scale_of_latents() -> None:
    """As diffusers' pipelines scale them, which ignore a mean without a deviation."""
    latents = np.random.default_rng(0).standard_normal((2, 3, 3, 4)).astype(np.float32)
    config = VAEConfig.from_json(CONFIGS["factor 8"] | PLAYGROUND)
    assert VAEConfig.from_json(config.to_json()) == config
    mean, std = (np.asarray(PLAYGROUND[name], np.float32) for name in ("latents_mean", "latents_std"))
    np.testing.assert_allclose(config.to_unet(latents), (latents - mean) * 0.5 / std, rtol=1e-6)
    np.testing.assert_allclose(config.from_unet(latents), latents * std / 0.5 + mean, rtol=1e-6)
    alone = VAEConfig.from_json(CONFIGS["factor 8"] | PLAYGROUND | {"latents_std": None})
    np.testing.assert_array_equal(alone.to_unet(latents), latents * np.float32(0.5))
    np.testing.assert_array_equal(alone.from_unet(latents), latents / np.float32(0.5))


@pytest.mark.parametrize("name", ["latents_mean", "latents_std"])
@pytest.mark.parametrize("value", [[1.0] * 3, [1.0] * 5, ["x"] * 4, 2.0, [float("nan")] * 4, []])
def test_scales_that_are_refused(name: str, value: object) -> None:
    with pytest.raises(DistrijaxError, match=name):
        VAEConfig.from_json(CONFIGS["factor 8"] | PLAYGROUND | {name: value})
