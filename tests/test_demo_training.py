"""The training of the demo model: it sees what the pipeline sees, and its stages fit together."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import CLIPTokenizer

from distrijax import StableDiffusionXLPipeline
from distrijax.checkpoint.load import load
from distrijax.demo import MODEL, scenes
from distrijax.models.unet import UNet
from distrijax.models.vae import VAE
from distrijax.nn.exchange import WHOLE


@pytest.fixture(scope="module")
def shipped() -> VAE:
    """The autoencoder."""
    return StableDiffusionXLPipeline.from_pretrained(MODEL, dtype=jnp.float32).vae


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch):
    """The modules of examples/demo_training."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    return lambda name: importlib.import_module(f"demo_training.{name}")


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_training_reads_captions_as_the_pipeline_does(name: str, training: Callable[[str], Any]):
    """The training looks whole words up; the shipped merges must come to the same."""
    rng = np.random.default_rng(0)
    captions = [scenes.caption(scenes.sample(rng), rng) for _ in range(200)]
    theirs = CLIPTokenizer.from_pretrained(MODEL / name)(captions, padding="max_length", max_length=77).input_ids
    np.testing.assert_array_equal(training("tokenizer").Tokenizer(MODEL / name)(captions), theirs)


def test_its_autoencoder_gives_pictures_back(shipped: VAE, training: Callable[[str], Any]):
    """37.9 dB; 33.1 before its decoder was trained alone."""
    psnr = training("autoencoder").measure(*nnx.split(shipped))["psnr_mean"]
    print(f"{psnr:.1f} dB")
    assert psnr > 35


def test_a_decoder_trained_alone_takes_the_place_of_the_first(
    tmp_path: Path, shipped: VAE, training: Callable[[str], Any]
):
    """Unpacked, the shipped autoencoder is itself; OUT/decoder then replaces its decoder and nothing of its encoder."""
    common, autoencoder = training("common"), training("autoencoder")
    training("unpack").write(MODEL, tmp_path)
    before = autoencoder.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, *(nnx.state(v, nnx.Param) for v in (before, shipped)))
    parts = {name: nnx.state(getattr(before, name), nnx.Param) for name in ("decoder", "post_quant_conv")}
    common.save(tmp_path / "decoder", 1, {"params": parts, "ema": jax.tree.map(lambda leaf: leaf + 1, parts)})
    after = autoencoder.load(tmp_path)
    for name in ("encoder", "quant_conv"):
        jax.tree.map(np.testing.assert_array_equal, *(nnx.state(getattr(v, name)) for v in (before, after)))
    for name in ("decoder", "post_quant_conv"):
        moved = jax.tree.map(lambda a, b: a - b, *(nnx.state(getattr(v, name)) for v in (after, before)))
        assert all(np.allclose(leaf, 1, atol=1e-5) for leaf in jax.tree.leaves(moved))


def test_another_autoencoder_is_refused_where_something_stands_on_the_first(
    tmp_path: Path, training: Callable[[str], Any]
):
    (tmp_path / "latents").mkdir()
    with pytest.raises(SystemExit, match=r"latents in .* move them away first"):
        training("autoencoder").train(tmp_path, steps=1, resume=False)


def test_what_is_learnt_last_is_drawn_oftener(tmp_path: Path, training: Callable[[str], Any]):
    latents = training("latents")
    (tmp_path / "latents").mkdir()
    marked = np.zeros((latents.SHARD, 32, 32, 4), np.float16)
    marked[:, 0, 0, 0] = np.arange(latents.SHARD)  # its number, which fp16 holds up to 2048
    np.save(latents.shard_file(tmp_path, 0), marked)
    pool = latents.Pool(tmp_path)
    drawn, weights, captions = pool.draw(np.random.default_rng(0), 20_000)
    numbers = drawn[:, 0, 0, 0].astype(int)
    for number, caption in zip(numbers[:20], captions[:20], strict=True):
        assert scenes.parse(caption) == pool.scenes[number]
    known = [(latents.scene_of(n)[0], scenes.arrange(*latents.scene_of(n))) for n in numbers[:20]]
    np.testing.assert_array_equal(weights[:20], [latents.item_weights(*scene) for scene in known])
    counts = np.bincount(numbers, minlength=latents.SHARD)
    inside, above = (
        np.mean([count for count, scene in zip(counts, pool.scenes, strict=True) if scene.arrangement == name])
        for name in ("inside", "above")
    )
    assert 2.2 < inside / above < 2.9  # 2.5 by the table; rings, stars and crosses add to either


def test_every_item_counts_as_much_in_the_loss_however_small(training: Callable[[str], Any]):
    """Against the pictures themselves: what is drawn there lies where the weights are large."""
    latents = training("latents")
    for number in range(40):
        scene, rng = latents.scene_of(number)
        weights = latents.item_weights(scene, scenes.arrange(scene, rng))
        assert weights.mean() == pytest.approx(1, abs=1e-5)
        picture = scenes.render(*latents.scene_of(number)).astype(int)
        ground = scenes.paint_background(scene.background)
        drawn = (np.abs(picture - ground).max(-1) > 40).reshape(32, 8, 32, 8).any((1, 3))
        rest = (1 - latents.ITEMS) / (1 - latents.ITEMS + latents.ITEMS * np.mean(latents.faint(scene)))
        assert weights[drawn].min() > weights[~drawn].min() == pytest.approx(rest), number
    small, large = scenes.Placement(60, 60, 24), scenes.Placement(180, 180, 58)
    weights = latents.item_weights(scenes.parse("a red star above a blue star"), [small, large])
    extra = weights[..., 0] - (1 - latents.ITEMS)
    assert extra[:13, :13].sum() == pytest.approx(extra[13:, 13:].sum()) == pytest.approx(32 * 32 * latents.ITEMS / 2)
    assert extra[7, 7] > 3 * extra[22, 22]


def test_what_hardly_stands_out_counts_more(training: Callable[[str], Any]):
    latents = training("latents")
    spots = [scenes.Placement(60, 60, 24), scenes.Placement(180, 180, 24)]
    weights = latents.item_weights(scenes.parse("a white star above a blue star"), spots)[..., 0]
    extra = weights / weights.min() - 1  # what the items add; white lies 87 from the light gray ground
    assert extra[7, 7] == pytest.approx(200 / (3**0.5 * 50) * extra[22, 22])
    scene = scenes.parse("a small orange star inside a large yellow square with a blue background")
    assert latents.faint(scene) == [pytest.approx(200 / 75.4, rel=1e-3), 1]  # by the square, not by the background
    striped = scenes.parse("a pink star, red vertically striped background")
    assert latents.faint(striped) == [pytest.approx(200 / 154.8, rel=1e-3)]  # by the white stripes, nearer than the red


def test_two_u_nets_are_exported_as_their_mean(tmp_path: Path, training: Callable[[str], Any]):
    common, export = training("common"), training("export")
    training("unpack").write(MODEL, tmp_path)
    first = common.load_params(tmp_path / "begin")
    common.save(tmp_path / "unet", 1, {"params": jax.tree.map(lambda leaf: leaf + 1, first)})
    export.write(tmp_path, tmp_path / "mean", average=tmp_path / "begin")
    mean, shipped = (
        nnx.state(load(folder, dtype=jnp.float32).unet, nnx.Param) for folder in (tmp_path / "mean", MODEL)
    )
    for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(shipped), strict=True):
        np.testing.assert_allclose(a, b + 0.5, atol=5e-3)  # fp16: 2e-3 apart between 2 and 4, where some weights are


def test_remade_pictures_are_not_taken_for_others(tmp_path: Path, training: Callable[[str], Any]):
    decoder, common = training("decoder"), training("common")
    numbers = decoder.chosen(3)
    common.save_arrays(tmp_path / "remade.npz", numbers=numbers, latents=np.zeros((3, 32, 32, 4), np.float16))
    decoder.remake(tmp_path, 3)  # they are those that it would make
    with pytest.raises(SystemExit, match=r"has 3 pictures, and not the 4 that are chosen: move it away"):
        decoder.remake(tmp_path, 4)
    common.save_arrays(tmp_path / "remade.npz", numbers=numbers + 1, latents=np.zeros((3, 32, 32, 4), np.float16))
    with pytest.raises(SystemExit, match="move it away"):
        decoder.remake(tmp_path, 3)


def test_the_decoder_sees_more_of_small_items(training: Callable[[str], Any]):
    decoder, latents = training("decoder"), training("latents")
    numbers = decoder.chosen(200)
    assert len(set(numbers)) == 200
    small = [sum(item.size == "small" for item in latents.scene_of(n)[0].items) for n in range(800)]
    assert np.mean([small[n] for n in numbers]) > 1.3 * np.mean(small)


def test_a_grown_u_net_computes_what_the_smaller_one_did(tmp_path: Path, training: Callable[[str], Any]):
    common, configs, grow = training("common"), training("configs"), training("grow")
    small = UNet(configs.unet_config([1, 1, 1]), rngs=nnx.Rngs(1))
    large = UNet(configs.unet_config([2, 3, 1]), rngs=nnx.Rngs(2))
    common.save(tmp_path, 1, {"params": nnx.state(small), "ema": nnx.state(small)})
    weights = common.load_params(tmp_path)
    grow.fill(large, weights)
    latents = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    shapes = [(2, 9, 192), (2, 128), (2, 6)]
    text, pooled, sizes = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes))

    @nnx.jit
    def output(unet: UNet) -> jax.Array:
        return unet(latents, jnp.array([300.0, 600.0]), unet.condition(text, pooled, sizes), WHOLE)

    before, after = output(small), output(large)
    np.testing.assert_allclose(after, before, atol=1e-5 * float(before.std()))
    deeper = {"down_blocks": {str(i): {"resnets": {"0": {}, "1": {}}} for i in range(3)}}
    with pytest.raises(SystemExit, match=r"has \[2, 2, 2\] layers a block, .* only \[1, 1, 1\]"):
        grow.fill(small, deeper)
