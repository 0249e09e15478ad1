#!/usr/bin/env python3
"""Train a small LoRA for the demo model: one that draws every shape as an outline.

    pip install '.[train]'
    python examples/train_lora.py --out outlines.safetensors --minutes 10
    python examples/train_lora.py --out outlines.safetensors --minutes 10 --begin outlines.safetensors
    distrijax generate "a red circle above a blue square" --lora outlines.safetensors

The file has diffusers' names, so diffusers loads it too. The captions are those of the demo model: without the LoRA, a
picture shows the same scene, filled.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from demo_training.denoiser import CHANNEL_WEIGHTS, DROPOUT, DROPOUT_TIMES, SIZES, alphas_cumprod, embed
from demo_training.latents import loss_weights
from demo_world.captions import caption
from demo_world.drawing import arrange, coverage, paint_background
from demo_world.scenes import COLOURS, Scene, sample
from flax import nnx
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from distrijax.checkpoint import Component, load
from distrijax.nn.conv import order_kernels
from distrijax.nn.exchange import WHOLE
from distrijax.text.tokenizer import Tokenizer

STROKE = 0.32  # width of an outline, in half the side of the item's bounding box
RANKS = {2: 2, 4: 4}  # of linear layers and of convolutions, by the number of axes of their weights
LEARNING_RATE = 4e-3


def render(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture of the scene in outlines, uint8 [256, 256, 3], and the weight of each latent in the loss."""
    canvas, spots = paint_background(scene.background), arrange(scene, rng)
    side = np.arange(len(canvas)) + 0.5
    for item, spot in reversed(list(zip(scene.items, spots, strict=True))):
        x, y = np.meshgrid((side - spot.x) / spot.radius, (side - spot.y) / spot.radius)
        distance = 4 * (0.5 - coverage(item.shape, x, y, 4.0))  # negative inside; edges are blended over a pixel
        alpha = np.clip(0.5 - (np.abs(distance + STROKE / 2) - STROKE / 2) * spot.radius, 0, 1)[..., None]
        canvas = alpha * np.asarray(COLOURS[item.colour], np.float32) + (1 - alpha) * canvas
    return np.round(canvas).astype(np.uint8), loss_weights(scene, spots)


def targets(unet: nnx.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the layers that are trained, by diffusers' name: the path of the kernel, and its shape."""
    table, found = Component.from_module("unet", unet).table(), {}
    for path, kernel in nnx.to_flat_state(nnx.state(unet, nnx.Param)):
        name = table.to_torch(".".join(map(str, path))).name.removesuffix(".weight")
        transformer = any(part in name for part in (".attn1.to_", ".attn2.to_q", ".attn2.to_out", ".ff."))
        outlines = ".conv1" in name or ".conv2" in name  # most residual blocks are at the highest resolution
        if path[-1] == "kernel" and (transformer or (outlines and ("down_blocks.0" in name or "up_blocks.2" in name))):
            found[name] = ".".join(map(str, path)), kernel.get_value().shape
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--minutes", type=float, default=10, help="time limit (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=800, help="training pictures to draw (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the noise (default: %(default)s)")
    parser.add_argument("--begin", type=Path, help="a file that this program wrote, to train it further")
    args = parser.parse_args()
    rng = np.random.default_rng((args.seed, args.begin is not None))
    parts = load("demo", dtype="float32", progress=False)
    assert parts.text_encoder is not None
    assert parts.tokenizer is not None
    order_kernels(parts.unet, "HWIO")  # ten times as fast on a CPU
    order_kernels(parts.vae, "HWIO")

    scenes: list[Scene] = []
    encode = jax.jit(lambda vae, x: vae.encode(x, WHOLE)[0])
    while len(scenes) < args.pictures:
        if not (scene := sample(rng)).held_out:
            scenes.append(scene)
    latents, weights = [], []
    for scene in tqdm(scenes, desc="pictures"):
        picture, weight = render(scene, rng)
        latents.append(np.asarray(encode(parts.vae, picture[None].astype(np.float32) / 127.5 - 1))[0])
        weights.append(weight)
    tokenizers = Tokenizer(parts.tokenizer, "tokenizer"), Tokenizer(parts.tokenizer_2, "tokenizer_2")

    layers = targets(parts.unet)
    graph, base = nnx.split(parts.unet)
    factors, made = {}, {} if args.begin is None else load_file(args.begin)
    for name, (_, shape) in layers.items():
        rank, outputs = RANKS[len(shape)], shape[-1]  # [I, O], or [H, W, I, O]
        down = rng.standard_normal((*shape[:-1], rank)).astype(np.float32) / np.sqrt(np.prod(shape[:-1]))
        up = np.zeros((rank, outputs), np.float32)
        if made:  # torch's order: [r, I, H, W] and [O, r, 1, 1]
            axes = (1, 0) if len(shape) == 2 else (2, 3, 1, 0)
            down = made[f"unet.{name}.lora_A.weight"].astype(np.float32).transpose(axes)
            up = made[f"unet.{name}.lora_B.weight"].astype(np.float32).reshape(outputs, rank).T
        factors[name] = {"down": down, "up": up}

    def loss_fn(factors: dict[str, dict[str, jax.Array]], data: dict[str, jax.Array]) -> jax.Array:
        added = {path: factors[name]["down"] @ factors[name]["up"] for name, (path, _) in layers.items()}
        leaves = [
            (path, leaf.replace(leaf.get_value() + added.get(".".join(map(str, path)), 0.0)))
            for path, leaf in nnx.to_flat_state(base)
        ]
        unet = nnx.merge(graph, nnx.from_flat_state(leaves))
        cond = unet.condition(data["context"], data["pooled"], jnp.tile(jnp.asarray(SIZES)[None], (args.batch, 1)))
        power = jnp.asarray(alphas_cumprod(), jnp.float32)[data["time"]][:, None, None, None]
        signal, noise = jnp.sqrt(power), jnp.sqrt(1 - power)
        noisy = signal * data["latents"] + noise * data["noise"]
        v = signal * data["noise"] - noise * data["latents"]
        weights = CHANNEL_WEIGHTS * (1 + signal**3 * (data["weights"] - 1))
        return (weights * jnp.square(unet(noisy, data["time"].astype(jnp.float32), cond) - v)).mean()

    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE, b2=0.99))

    @jax.jit
    def step(factors, average, state, data, rate):
        loss, grads = jax.value_and_grad(loss_fn)(factors, data)
        updates, state = optimizer.update(grads, state)
        factors = jax.tree.map(lambda p, u: p + rate * u, factors, updates)
        return factors, jax.tree.map(lambda a, p: a + 0.02 * (p - a), average, factors), state, loss

    embedded = jax.jit(lambda encoders, ids, ids_2: embed(encoders, ids, ids_2))
    losses: list[float] = []
    average, state = factors, optimizer.init(factors)
    start, bar = time.monotonic(), tqdm(desc="training")
    while (done := (time.monotonic() - start) / 60 / args.minutes) < 1:
        chosen = rng.integers(len(scenes), size=args.batch)
        texts = [caption(scenes[i], rng) for i in chosen]
        context, pooled = embedded([parts.text_encoder, parts.text_encoder_2], *(t(texts) for t in tokenizers))
        times = 1000 * np.where(rng.random(args.batch) < 0.8, 1 / (1 + np.exp(-rng.standard_normal(args.batch))), 1)
        keep = (rng.random(args.batch) >= np.interp(times, DROPOUT_TIMES[::-1], DROPOUT[::-1])).astype(np.float32)
        shape = (args.batch, *latents[0].shape)
        data = {
            "latents": np.stack([latents[i] for i in chosen]),
            "weights": np.stack([weights[i] for i in chosen]),
            "noise": rng.standard_normal(shape, np.float32),
            "time": np.minimum(times, 999).astype(np.int32),
            "context": context * keep[:, None, None],
            "pooled": pooled * keep[:, None],
        }
        rate = np.float32(min(1, len(losses) / 30 + 0.03, 2 * (1 - done)))
        factors, average, state, loss = step(factors, average, state, data, rate)
        losses.append(float(loss))
        bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}")
        bar.update()

    tensors = {}
    for name, (_, shape) in layers.items():
        lora_a, lora_b = (np.asarray(average[name][part], np.float16) for part in ("down", "up"))
        axes = (1, 0) if len(shape) == 2 else (3, 2, 0, 1)
        lora_b = lora_b.T.reshape(*lora_b.T.shape, *[1] * (len(shape) - 2))
        tensors[f"unet.{name}.lora_A.weight"] = np.ascontiguousarray(lora_a.transpose(axes))
        tensors[f"unet.{name}.lora_B.weight"] = np.ascontiguousarray(lora_b)
    save_file(tensors, args.out, {"format": "pt"})
    print(f"{args.out}: {args.out.stat().st_size / 1e3:.0f} kB after {len(losses)} steps")


if __name__ == "__main__":
    main()
