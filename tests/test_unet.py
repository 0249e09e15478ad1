"""The U-Net against diffusers' on torch, layer by layer and whole."""

import functools
import json
from importlib import resources

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D
from flax import nnx
from reference import error, load_from_torch, random_weights, to_numpy, to_torch

from distrijax.checkpoint import Component, tables
from distrijax.config import UNetConfig
from distrijax.errors import DistrijaxError
from distrijax.models.unet import UNet
from distrijax.nn.conv import Downsample, Upsample
from distrijax.nn.embeddings import guidance_embedding, sinusoidal_embedding
from distrijax.nn.exchange import WHOLE
from distrijax.nn.module import abstract, name_layers
from distrijax.nn.resnet import ResnetBlock
from distrijax.nn.transformer import TransformerBlock

# fp32 sums of a few hundred terms in another order: the differences measured are 1e-6 to 4e-6 of the deviation.
# Tanh GELU would be 2e-4 off, a group norm epsilon of 1e-5 in the transformer 1e-5 and more.
FP32 = 1e-5
# bf16 keeps 8 bits; the reference in bf16 is itself this far from fp32 (the test prints both).
BF16 = 0.1

SMALL = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "norm_num_groups": 8,
    "cross_attention_dim": 24,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [16, 32, 64],
    "layers_per_block": 2,
    "attention_head_dim": [2, 4, 8],
    "transformer_layers_per_block": [1, 1, 2],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
CONFIGS = {
    "base": SMALL,
    "refiner": SMALL
    | {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [16, 32, 64, 64],
        "attention_head_dim": [2, 4, 8, 8],
        "transformer_layers_per_block": 2,
        "projection_class_embeddings_input_dim": 72,
    },
    "two levels, conv projections, own head count": SMALL
    | {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [24, 48],
        "attention_head_dim": 3,
        "layers_per_block": 1,
        "use_linear_projection": False,
        "transformer_layers_per_block": [2, 1],
        "norm_eps": 1e-6,
        "norm_num_groups": 12,
    },
    "distilled (LCM)": SMALL | {"time_cond_proj_dim": 16, "layers_per_block": [1, 2, 1]},
    "pruned (SSD-1B)": SMALL
    | {
        "transformer_layers_per_block": [0, [1, 2], [2, 1]],
        "reverse_transformer_layers_per_block": [[2, 1, 2], [1, 1, 2], 1],
    },
}


def inputs(config: UNetConfig, size: tuple[int, int], batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    ids = 5 if config.projection_class_embeddings_input_dim == 72 else 6
    pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
    x = {
        "latents": rng.randn(batch, *size, config.in_channels),
        "context": rng.randn(batch, 11, config.cross_attention_dim),
        "pooled": rng.randn(batch, pooled),
        "time_ids": rng.randint(0, 1024, (batch, ids)),
    }
    if config.time_cond_proj_dim:
        x["guidance"] = rng.randn(batch, config.time_cond_proj_dim)
    return {name: value.astype(np.float32) for name, value in x.items()}


@functools.cache
def reference_unet(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return random_weights(diffusers.UNet2DConditionModel(**CONFIGS[name]))


def run_reference(model: torch.nn.Module, x: dict[str, np.ndarray], timestep: float) -> np.ndarray:
    t = {name: to_torch(value).to(model.dtype) for name, value in x.items()}
    with torch.no_grad():
        y = model(
            t["latents"],
            torch.tensor(timestep),
            t["context"],
            timestep_cond=t.get("guidance"),
            added_cond_kwargs={"text_embeds": t["pooled"], "time_ids": t["time_ids"].float()},
        )
    return to_numpy(y.sample)


@jax.jit
def run(unet: UNet, x: dict[str, jax.Array], timestep: jax.Array) -> jax.Array:
    cond = unet.condition(x["context"], x["pooled"], x["time_ids"], x.get("guidance"))
    return unet(x["latents"], timestep, cond, WHOLE)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_unet(name: str) -> None:
    reference = reference_unet(name)
    unet = load_from_torch("unet", reference.config, reference)
    # Odd sizes at every level: 13 -> 7 -> 4 rows, 22 -> 11 -> 6 columns.
    for size, timestep in (((16, 16), 981.0), ((13, 22), 1.0)):
        x = inputs(unet.config, size)
        assert error(run(unet, x, jnp.float32(timestep)), run_reference(reference, x, timestep)) < FP32


def test_fractional_timesteps() -> None:
    reference = reference_unet("base")
    unet = load_from_torch("unet", reference.config, reference)
    x = inputs(unet.config, (8, 8))
    assert error(run(unet, x, jnp.float32(12.34)), run_reference(reference, x, 12.34)) < FP32


def test_bfloat16() -> None:
    reference = reference_unet("base")
    x = inputs(UNetConfig.from_json(SMALL), (16, 16))
    exact = run_reference(reference, x, 500.0)
    unet = load_from_torch("unet", SMALL, reference, jnp.bfloat16)
    y = run(unet, x, jnp.float32(500))
    assert y.dtype == jnp.bfloat16
    torch.manual_seed(0)
    half = random_weights(diffusers.UNet2DConditionModel(**SMALL)).to(torch.bfloat16)
    ours, theirs = error(y, exact), error(run_reference(half, x, 500.0), exact)
    print(f"bf16 against fp32, largest difference over deviation: ours {ours:.3f}, torch {theirs:.3f}")
    assert ours < BF16
    assert ours < 2 * theirs


def test_other_prompts_run_the_same_program() -> None:
    """Prompts and timesteps are arguments: other values run the same compiled program."""
    unet = load_from_torch("unet", SMALL, reference_unet("base"))
    run(unet, inputs(unet.config, (8, 8)), jnp.float32(3))
    before = run._cache_size()
    run(unet, {name: value + 1 for name, value in inputs(unet.config, (8, 8)).items()}, jnp.float32(7))
    assert run._cache_size() == before


# ------------------------------------------------------------------------------------------------- layer by layer


def fill(ours: nnx.Module, reference: torch.nn.Module, prefix: str) -> None:
    """Copy torch's weights into a part of a U-Net, by the U-Net's table."""
    table = tables.unet_table()
    state = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(ours))}
    for name, tensor in reference.state_dict().items():
        entry = table.to_ours(f"{prefix}.{name}")
        assert entry is not None, name
        leaf = state.pop(entry.name.removeprefix(f"{prefix}."))
        leaf.set_value(jnp.asarray(tensor.numpy().transpose(entry.axes)))
    assert not state


@pytest.mark.parametrize("shape", [(1, 8, 8, 16), (2, 5, 7, 16)])
@pytest.mark.parametrize("out", [16, 32])
def test_resnet_block(shape: tuple[int, ...], out: int) -> None:
    torch.manual_seed(0)
    reference = random_weights(ResnetBlock2D(in_channels=16, out_channels=out, temb_channels=20, groups=8, eps=1e-5))
    ours = ResnetBlock(16, out, 20, groups=8, eps=1e-5, dtype=jnp.float32, rngs=nnx.Rngs(0))
    name_layers(ours, "test")
    fill(ours, reference, "down_blocks.0.resnets.0")
    # A mean of 30 and a deviation of 1: a variance formed as E[x²] - E[x]² would lose three digits here.
    x = (np.random.RandomState(0).randn(*shape) + 30).astype(np.float32)
    time = np.random.RandomState(1).randn(shape[0], 20).astype(np.float32)
    with torch.no_grad():
        expected = to_numpy(reference(to_torch(x), torch.from_numpy(time)))
    assert error(jax.jit(lambda m, x, t: m(x, WHOLE, t))(ours, x, time), expected) < FP32


def test_transformer_block() -> None:
    torch.manual_seed(0)
    reference = random_weights(BasicTransformerBlock(32, 4, 8, cross_attention_dim=24))
    ours = TransformerBlock(32, 24, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    name_layers(ours, "test")
    fill(ours, reference, "down_blocks.0.attentions.0.transformer_blocks.0")
    rng = np.random.RandomState(0)
    x, context = rng.randn(2, 30, 32).astype(np.float32), rng.randn(2, 7, 24).astype(np.float32)
    with torch.no_grad():
        expected = to_numpy(reference(torch.from_numpy(x), encoder_hidden_states=torch.from_numpy(context)))
    maps = x.reshape(2, 5, 6, 32).transpose(1, 2, 0, 3)  # [H, W, B, C]
    y = ours(maps, {ours.attn2.path: ours.attn2.keys_values(context)}, WHOLE)
    assert error(y.transpose(2, 0, 1, 3).reshape(x.shape), expected) < FP32


@pytest.mark.parametrize("size", [(8, 8), (5, 8), (7, 3)])
def test_change_of_size(size: tuple[int, int]) -> None:
    x = np.random.RandomState(0).randn(2, *size, 16).astype(np.float32)
    torch.manual_seed(0)
    down, up = Downsample2D(16, use_conv=True, name="op"), Upsample2D(16, use_conv=True)
    ours_down = Downsample(16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    ours_up = Upsample(16, dtype=jnp.float32, rngs=nnx.Rngs(0))
    for ours, reference in ((ours_down, down), (ours_up, up)):
        ours.conv.kernel[...] = jnp.asarray(reference.conv.weight.detach().numpy().transpose(0, 2, 3, 1))
        ours.conv.bias[...] = jnp.asarray(reference.conv.bias.detach().numpy())
    odd = tuple(2 * n - 1 for n in size)
    with torch.no_grad():
        assert error(ours_down(x, WHOLE), to_numpy(down(to_torch(x)))) < FP32
        assert error(ours_up(x, WHOLE), to_numpy(up(to_torch(x)))) < FP32
        assert error(ours_up(x, WHOLE, odd), to_numpy(up(to_torch(x), output_size=odd))) < FP32


@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1)])
def test_sinusoidal_embedding(flip: bool, shift: float) -> None:
    from diffusers.models.embeddings import get_timestep_embedding

    x = np.array([0.0, 1.0, 12.5, 999.0], np.float32)
    expected = get_timestep_embedding(torch.from_numpy(x), 32, flip_sin_to_cos=flip, downscale_freq_shift=shift).numpy()
    ours = sinusoidal_embedding(jnp.asarray(x), 32, flip_sin_to_cos=flip, freq_shift=shift)
    # An angle of 999 is known to 999 * 2**-24 = 6e-5 in fp32, and exp differs by a rounding between the two.
    np.testing.assert_allclose(ours, expected, atol=2e-4)


def test_guidance_embedding() -> None:
    scale = torch.tensor([1.0, 7.5])
    expected = diffusers.StableDiffusionXLPipeline.get_guidance_scale_embedding(
        None, scale - 1, embedding_dim=16
    ).numpy()
    np.testing.assert_allclose(guidance_embedding(jnp.asarray(scale.numpy()), 16), expected, atol=1e-3)


# ------------------------------------------------------------------------------------------- full size and configs

PARAMETERS = {"base_unet": 2_567_463_684, "refiner_unet": 2_259_526_660}


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_size_shapes(name: str) -> None:
    """Every tensor of the real checkpoints has a place of its shape in our model, and no place is left over."""
    config = json.loads((resources.files("distrijax.checkpoint") / "configs" / f"{name}.json").read_text())
    plan = Component.from_json("unet", config, name)
    with torch.device("meta"):
        reference = diffusers.UNet2DConditionModel.from_config(config).state_dict()
    assert len(reference) == len(plan.shapes)
    table = plan.table()
    for key, tensor in reference.items():
        entry = table.to_ours(key)
        assert entry is not None, key
        assert plan.shapes[entry.name] == tuple(tensor.shape[axis] for axis in entry.axes), key
    assert plan.parameters == PARAMETERS[name]
    leaves = jax.tree.leaves(nnx.state(abstract(UNet, UNetConfig.from_json(config), jnp.bfloat16)))
    assert sum(leaf.size for leaf in leaves) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn is 'gelu'"),
        ({"addition_embed_type": None}, "addition_embed_type"),
        ({"addition_embed_type": "image"}, "addition_embed_type is 'image'"),
        ({"down_block_types": ["AttnDownBlock2D"] * 3}, "AttnDownBlock2D"),
        ({"mid_block_type": "UNetMidBlock2D"}, "UNetMidBlock2D"),
        ({"cross_attention_dim": None}, "cross_attention_dim is None"),
        ({"attention_head_dim": [2, 4]}, "attention_head_dim has 2 entries"),
        ({"resnet_time_scale_shift": "scale_shift", "dual_cross_attention": True}, "dual_cross_attention is True"),
        ({"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel"),
    ],
)
def test_unsupported_configurations_are_refused_by_name(change: dict, named: str) -> None:
    with pytest.raises(DistrijaxError, match="not supported") as caught:
        UNetConfig.from_json(SMALL | change)
    assert named in str(caught.value)
