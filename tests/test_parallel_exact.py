"""One picture by several devices: exactly that of one device in step, and the same by virtual devices as by real ones.

Rows are dealt in fours here (three levels), so that 33 rows over eight devices are slabs of eight: four full, one with
a single row, and three devices without any.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from parallel_helpers import SMALLER, predictions, relative, small_unet, smaller_unet, with_random_weights

from distrijax import Parallel, StableDiffusionXLPipeline, scheduler_from_config
from distrijax.config import UNetConfig
from distrijax.demo import MODEL
from distrijax.models.unet import UNet
from distrijax.nn.conv import Conv
from distrijax.nn.exchange import Exchange, Fit
from distrijax.parallel.exchange import SlabExchange
from distrijax.parallel.policies import MODES

# Relative L2 in fp32: the same sums in another order, some 1e-6. Displaced modes differ from one device by 1e-2 and
# more, the original in its synchronous mode by 6e-4 to 2.4e-3.
NEAR = 1e-5
DISPLACED = [mode for mode, policy in MODES.items() if policy.carries]

WIDE, SHORT, SQUARE, TALL, EVEN = (9, 33), (11, 8), (17, 17), (33, 5), (32, 32)  # 72, 88, 136, 264, 256 pixels high
SIZES = {  # (cfg, patch): rows and columns of latents
    (1, 1): WIDE, (1, 2): WIDE, (1, 3): WIDE, (1, 4): SQUARE, (1, 5): SQUARE, (1, 6): TALL, (1, 7): TALL, (1, 8): TALL,
    (2, 1): WIDE, (2, 2): SHORT, (2, 3): SHORT, (2, 4): TALL, (2, 5): TALL, (2, 6): EVEN, (2, 7): EVEN, (2, 8): EVEN,
}  # fmt: skip
REAL = {(1, 3), (1, 8), (2, 3)}  # the others are emulated: that it is the same is tested below


def synchronous(cfg: int, patch: int) -> Parallel:
    return Parallel(cfg=cfg, patch=patch, mode="full_sync", emulate=(cfg, patch) not in REAL)


@cache
def one_device(size: tuple[int, int]) -> np.ndarray:
    return predictions(small_unet(), Parallel(), size)[0]


@pytest.mark.parametrize(("cfg", "patch"), SIZES)
def test_synchronous_predictions_are_those_of_one_device(cfg: int, patch: int) -> None:
    size = SIZES[cfg, patch]
    error = relative(predictions(small_unet(), synchronous(cfg, patch), size)[0], one_device(size))
    print(f"cfg={cfg} x patch={patch}, {size[0]} x {size[1]}: {error:.1e}")
    assert error <= NEAR


def displaced(mode: str, emulate: bool) -> tuple[Parallel, tuple[int, int], int]:
    """The mesh, the size of the latents and the batch: slabs of four rows, of which the last has one."""
    mesh: dict[str, int] = {"data": 2, "cfg": 2, "patch": 2} if mode == "predicted" else {"patch": 3}
    parallel = Parallel(**mesh, mode=mode, warmup_steps=0, emulate=emulate)
    return parallel, (4 * parallel.patch - 3, 7), 4 if parallel.data == 2 else 1


@cache
def displaced_predictions(mode: str, emulate: bool) -> tuple[np.ndarray, np.ndarray]:
    parallel, size, batch = displaced(mode, emulate)
    return predictions(smaller_unet(), parallel, size, batch=batch, steps=3)


@pytest.mark.parametrize("mode", DISPLACED)
def test_emulated_devices_are_like_real_ones(mode: str) -> None:
    """To rounding: `vmap` makes one convolution of many, which sums in another order."""
    emulated, real = (displaced_predictions(mode, emulate)[0] for emulate in (True, False))
    error = relative(emulated, real)
    _, size, batch = displaced(mode, False)
    one = predictions(smaller_unet(), Parallel(), size, batch=batch, steps=3)[0]
    off = [relative(ours[None], whole[None]) for ours, whole in zip(real, one, strict=True)]
    print(f"{mode}: {error:.1e}; from one device: {' '.join(f'{x:.1e}' for x in off)}")
    assert error <= NEAR
    assert off[0] <= NEAR
    assert min(off[1:]) > 1e-3, "these steps are not displaced"


@pytest.fixture
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every convolution leaves NaN in the rows of padding."""
    convolve = Conv.__call__

    def poisoned(self: Conv, x: Array, exchange: Exchange, *fit: Fit) -> Array:
        y = convolve(self, x, exchange, *fit)
        assert isinstance(exchange, SlabExchange)
        own = jnp.asarray(exchange.slab.layout.counts(y.shape[1]))[lax.axis_index("patch")]
        return jnp.where((jnp.arange(y.shape[1]) < own)[None, :, None, None], y, jnp.nan)

    monkeypatch.setattr(Conv, "__call__", poisoned)
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_padding_does_not_reach_the_picture(request: pytest.FixtureRequest) -> None:
    """It meets no sum, not even with a weight of zero: not in the moments, not in the attention, not next door."""
    size, parallel = SIZES[1, 4], synchronous(1, 4)
    whole = one_device(size)
    request.getfixturevalue("_poisoned")
    assert relative(predictions(small_unet(), parallel, size, padding=np.nan)[0], whole) <= NEAR


@pytest.mark.parametrize("mode", ["corrected_async_gn", "predicted", "separate_gn"])
def test_padding_does_not_reach_the_picture_in_displaced_steps(mode: str, request: pytest.FixtureRequest) -> None:
    (parallel, size, batch), clean = displaced(mode, True), displaced_predictions(mode, True)[0]
    request.getfixturevalue("_poisoned")
    poisoned = predictions(smaller_unet(), parallel, size, batch=batch, steps=3, padding=np.nan)[0]
    assert relative(poisoned, clean) <= NEAR


# Full pipelines. 136x120 pixels are 17 rows and 15 columns of latents.
SIZE = {"height": 136, "width": 120}
PICTURE = 1e-4  # of 0 to 1, a fortieth of a grey level: rounding of three steps and the decoder


@cache
def demo() -> Any:
    return StableDiffusionXLPipeline.from_pretrained(MODEL, dtype=jnp.float32)


@cache
def pipeline(parallel: Parallel, small: bool = True) -> StableDiffusionXLPipeline:
    """The demo model on this mesh; or its encoders, decoder and scheduler with a random U-Net, quick to compile."""
    parts = {name: getattr(demo(), name) for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    unet = demo().unet
    if small:
        config = SMALLER | {"cross_attention_dim": 192, "projection_class_embeddings_input_dim": 320}
        unet = with_random_weights(UNet, UNetConfig.from_json(config | {"addition_time_embed_dim": 32}))
    pipe = StableDiffusionXLPipeline(unet=unet, vae=demo().vae, scheduler=demo().scheduler, parallel=parallel, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusionXLPipeline, prompt: Any = "a red circle", **call: Any) -> np.ndarray:
    """Pictures [B, H, W, 3], or latents [B, C, H / 8, W / 8]."""
    settings = {"num_inference_steps": 3, "seed": 3, "output_type": "np"} | SIZE | call
    images = np.asarray(pipe(prompt, **settings).images)
    assert np.isfinite(images).all()
    return images


def largest(x: np.ndarray, y: np.ndarray) -> float:
    assert x.shape == y.shape
    difference = float(np.abs(x - y).max())
    print(f"largest difference {difference:.1e}")
    return difference


def test_same_seed_same_picture_whatever_the_mesh() -> None:
    """The demo model, with a scheduler that draws noise in each step, and guidance rescaled over the whole picture."""
    # Latents, of deviation 1: the demo's decoder evens out what it takes for a plain ground, differences with it.
    call = {"guidance_rescale": 0.7, "output_type": "latent"}
    drawn = []
    for mesh in ({}, {"cfg": 2, "patch": 3}, {"patch": 4}):  # of four devices, one has no rows
        pipe = pipeline(Parallel(**mesh, mode="full_sync"), small=False)
        pipe.scheduler = scheduler_from_config(pipe.scheduler.config, "euler_ancestral")
        drawn.append(draw(pipe, **call))
    one, *others = drawn
    assert largest(one, draw(pipe, seed=4, **call)) > 1000 * PICTURE, "seeds hardly matter: that would hide differences"
    for other in others:
        assert largest(other, one) < PICTURE


def test_a_batch_is_its_pictures() -> None:
    """Two prompts, two pictures each, over two groups of devices; and each alone, over two devices."""
    prompts, seeds = ["a red circle", "a blue square"], [1, 2, 3, 4]
    pipe = pipeline(Parallel(data=2, patch=2, warmup_steps=0))
    together = draw(pipe, prompts, num_images_per_prompt=2, seed=seeds)
    assert together.shape == (4, 136, 120, 3)
    for i, seed in enumerate(seeds):
        alone = draw(displaced_pipeline(), prompts[i // 2], seed=seed)
        assert alone.std() > 0.05
        assert largest(alone, together[i : i + 1]) < PICTURE


def displaced_pipeline() -> StableDiffusionXLPipeline:
    return pipeline(Parallel(patch=2, warmup_steps=0))


def test_every_call_starts_afresh() -> None:
    """Nothing of the last call's rows is left in the next one's."""
    pipe = displaced_pipeline()
    first = draw(pipe)
    assert draw(pipe, height=128, width=128, seed=4).shape == (1, 128, 128, 3)
    np.testing.assert_array_equal(draw(pipe), first)


def test_a_callback_sees_the_picture_without_padding() -> None:
    pipe, seen = displaced_pipeline(), []
    assert pipe.parallel.layout(17, pipe.unet.config.row_multiple).padding == 3

    def callback(pipe: Any, step: int, timestep: float, values: dict[str, Any]) -> dict[str, Any]:
        seen.append(values["latents"].shape)
        return {"latents": values["latents"]}  # back with new padding, which must not matter

    with_callback = pipe(
        "a red circle", num_inference_steps=3, seed=3, callback_on_step_end=callback, output_type="latent", **SIZE
    )
    assert seen == [(1, 4, 17, 15)] * 3
    without = pipe("a red circle", num_inference_steps=3, seed=3, output_type="latent", **SIZE)
    assert with_callback.images.shape == (1, 4, 17, 15)
    np.testing.assert_array_equal(with_callback.images, without.images)
