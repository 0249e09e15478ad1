"""The tiny autoencoder (TAESD-XL) against diffusers' on torch, spread over devices, and from files of every form."""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

import diffusers
import jax
import numpy as np
import pytest
import torch
from parallel_helpers import relative
from reference import error, load_from_torch, to_numpy, to_torch
from safetensors.torch import save_file
from test_image_to_image import photo
from test_pipeline import CHECKPOINTS, LEVELS, PROMPT, generators, write_pipeline

from distrijax import AutoencoderTiny, AutoencoderTinyConfig, DistrijaxError, Parallel, StableDiffusionXLImg2ImgPipeline
from distrijax.checkpoint import Component, convert, load_part
from distrijax.nn.module import Weights
from distrijax.sampling import programs

FP32 = 1e-5  # of the output's deviation: sums in another order, 1e-6 measured

CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "encoder_block_out_channels": [8, 8, 8, 8],
    "decoder_block_out_channels": [12, 12, 12, 12],
    "num_encoder_blocks": [1, 2, 1, 1],
    "num_decoder_blocks": [2, 1, 1, 1],
}


@cache
def reference() -> torch.nn.Module:
    """Weights that keep the signal's size, and biases, which torch starts near zero."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(**{k: v for k, v in CONFIG.items() if k != "_class_name"})
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape) if p.ndim == 1 else torch.randn(p.shape) / p[0].numel() ** 0.5)
    return model.eval()


@cache
def ours() -> AutoencoderTiny:
    return load_from_torch("vae", CONFIG, reference())


def picture(height: int = 48, width: int = 40) -> np.ndarray:
    return np.random.RandomState(0).uniform(-1, 1, (1, height, width, 3)).astype(np.float32)


def some_latents(height: int = 6, width: int = 5) -> np.ndarray:
    """Some of them beyond 3, where the soft clamp matters."""
    return 2 * np.random.RandomState(1).randn(2, height, width, 4).astype(np.float32)


def test_encode_and_decode() -> None:
    with torch.no_grad():
        latents = to_numpy(reference().encode(to_torch(picture())).latents)
        decoded = to_numpy(reference().decode(to_torch(some_latents())).sample)
    encoded, variance = jax.jit(lambda m, x: m.encode(x))(ours(), picture())
    assert variance is None
    assert error(encoded, latents) < FP32
    assert error(jax.jit(lambda m, x: m.decode(x))(ours(), some_latents()), decoded) < FP32


def test_full_size_shapes() -> None:
    plan = Component.from_json("vae", {"_class_name": "AutoencoderTiny"}, "test")
    with torch.device("meta"):
        state = diffusers.AutoencoderTiny().state_dict()
    table = plan.table()
    assert {table.to_ours(name).name for name in state} == set(plan.shapes)  # type: ignore[union-attr]
    assert plan.parameters == sum(p.numel() for p in state.values()) == 2_445_063
    assert AutoencoderTinyConfig.from_json(diffusers.AutoencoderTiny().config) == AutoencoderTinyConfig()


@pytest.mark.parametrize(
    "parallel",
    [
        Parallel(patch=2, mode="full_sync"),
        Parallel(patch=3, mode="full_sync", emulate=True),
        Parallel(patch=8, mode="full_sync", emulate=True),  # slabs of two rows: five are used
    ],
    ids=lambda p: f"{p.patch}",
)
def test_spread_over_devices(parallel: Parallel) -> None:
    """9 rows of latents on 2, 3 and 8 devices; rows of padding hold NaN, which must not spread."""
    weights, image = Weights.of(ours()), picture(72, 40)
    latents = np.pad(some_latents(9), ((0, 0), (0, 3), (0, 0), (0, 0)), constant_values=np.nan)

    def both(parallel: Parallel) -> tuple[Any, Any]:
        decode = partial(programs.decode, parallel=parallel, height=9)
        encode = partial(programs.encode, parallel=parallel)
        return jax.jit(decode)(weights, latents, np.int32(1))[0], jax.jit(encode)(weights, image)[0]

    for spread, whole in zip(both(parallel), both(Parallel()), strict=True):
        assert whole.std() > 0.05, "flat or clipped: it would hide any difference"
        assert relative(spread, whole) < FP32


def original(half: str) -> dict[str, torch.Tensor]:
    """The tensors of `taesdxl_encoder` or `taesdxl_decoder`: numbered in torch's `Sequential`s, the decoder after a
    clamp."""
    shift = int(half == "decoder")
    named = [name.split(".", 3)[2:] for name in reference().state_dict() if name.startswith(half)]
    return {
        f"{int(number) + shift}.{rest}": reference().state_dict()[f"{half}.layers.{number}.{rest}"].clone()
        for number, rest in named
    }


def same(model: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(ours()), strict=True))


def test_files_of_every_form(tmp_path: Path) -> None:
    reference().save_pretrained(tmp_path / "diffusers")  # type: ignore[operator]
    assert same(load_part("vae", tmp_path / "diffusers"))
    assert same(load_part("vae", tmp_path / "diffusers" / "diffusion_pytorch_model.safetensors"))
    for half in ("encoder", "decoder"):
        save_file(original(half), tmp_path / f"taesdxl_{half}.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    for half in ("encoder", "decoder"):
        assert same(load_part("vae", tmp_path / f"taesdxl_{half}.safetensors"))
    both = {f"taesd_{half}.{name}": x for half in ("encoder", "decoder") for name, x in original(half).items()}
    save_file(both, tmp_path / "both.safetensors")
    assert same(load_part("vae", tmp_path / "both.safetensors"))


def test_original_files_of_the_published_size_need_no_configuration(tmp_path: Path) -> None:
    full = diffusers.AutoencoderTiny().state_dict()
    state = {name.replace(".layers", "", 1): x for name, x in full.items()}
    for half, shift in (("encoder", 0), ("decoder", 1)):
        named = [name.split(".", 2) for name in state if name.startswith(half)]
        tensors = {f"{int(n) + shift}.{rest}": state[f"{half}.{n}.{rest}"] for _, n, rest in named}
        save_file(tensors, tmp_path / f"taesdxl_{half}.safetensors")
    model = load_part("vae", tmp_path / "taesdxl_decoder.safetensors")
    assert model.config == AutoencoderTinyConfig()
    np.testing.assert_array_equal(model.decoder.layers[0].bias[...], full["decoder.layers.0.bias"].numpy())


def test_half_of_a_model(tmp_path: Path) -> None:
    save_file(original("decoder"), tmp_path / "taesdxl_decoder.safetensors")
    with pytest.raises(DistrijaxError, match=r"decoder of a TAESD model .* as taesdxl_encoder.safetensors"):
        load_part("vae", tmp_path / "taesdxl_decoder.safetensors")
    save_file(original("encoder"), tmp_path / "first.safetensors")
    with pytest.raises(DistrijaxError, match="encoder of a TAESD model without its decoder"):
        load_part("vae", tmp_path / "first.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"upsample_fn": "bilinear"}, "upsample_fn"),
        ({"upsampling_scaling_factor": 4}, "upsampling_scaling_factor"),
        ({"encoder_block_out_channels": [8, 8, 16, 16]}, r"\[8, 8, 16, 16\]; its widths must be equal"),
        ({"num_decoder_blocks": [1, 1, 1]}, "num_decoder_blocks has 3"),
        ({"shift_factor": 0.1}, "shift_factor is 0.1"),
        ({"scaling_factor": float("nan")}, "scaling_factor"),
        ({"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(DistrijaxError, match=named):
        AutoencoderTinyConfig.from_json(CONFIG | change)


def test_config_round_trip() -> None:
    config = AutoencoderTinyConfig.from_json(CONFIG)
    assert AutoencoderTinyConfig.from_json(config.to_json()) == config
    theirs = diffusers.AutoencoderTiny.from_config(config.to_json())
    assert {name: x.shape for name, x in theirs.state_dict().items()} == {
        name: x.shape for name, x in reference().state_dict().items()
    }


def test_in_place_of_the_vae(tmp_path: Path) -> None:
    """Image to image, so that it encodes and decodes: as in diffusers, encoding draws no noise before the run's."""
    small = {"encoder_block_out_channels": [8, 8], "decoder_block_out_channels": [8, 8]}
    small |= {"num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1]}
    torch.manual_seed(0)
    tiny = diffusers.AutoencoderTiny(**small)
    with torch.no_grad():
        for p in tiny.parameters():
            p.copy_(0.3 * torch.randn(p.shape) if p.ndim == 1 else torch.randn(p.shape) / p[0].numel() ** 0.5)
    tiny.eval().save_pretrained(tmp_path / "tiny")
    write_pipeline(tmp_path / "base", **CHECKPOINTS["base"])
    kind = diffusers.StableDiffusionXLImg2ImgPipeline
    theirs = kind.from_pretrained(tmp_path / "base", vae=tiny, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(tmp_path / "base", vae=tmp_path / "tiny", progress=False)
    assert isinstance(pipe.vae, AutoencoderTiny)
    pipe.set_progress_bar_config(disable=True)
    call = {"prompt": PROMPT, "image": photo(20, 28), "num_inference_steps": 4, "strength": 0.5, "output_type": "np"}
    expected = theirs(**call, generator=generators(3)).images
    assert expected.std() > 0.05, "flat: it would hide any difference"
    assert np.abs(pipe(**call, seed=3).images - expected).max() <= LEVELS
    folder = pipe.save_pretrained(tmp_path / "saved")
    assert isinstance(diffusers.AutoencoderTiny.from_pretrained(folder / "vae"), diffusers.AutoencoderTiny)
    stored = convert(folder, tmp_path / "converted", progress=False)
    read = [jax.tree.leaves(load_part("vae", source)) for source in (stored, tmp_path / "tiny")]
    assert all(np.array_equal(a, b) for a, b in zip(*read, strict=True))
