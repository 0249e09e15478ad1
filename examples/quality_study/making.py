"""Pictures of a setting, and what is measured of them."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from distrijax import Parallel, StableDiffusionXLPipeline, scheduler_from_config
from distrijax.demo import check, scenes
from distrijax.models.vae import VAE
from distrijax.parallel.exchange import Whole
from quality_study import metrics
from quality_study.settings import Setting

GUIDANCE = 5.0
# 29 rows of latents: of eight devices with four each, the last has one, and one row of 8 at the U-Net's lowest level.
SMALLEST, CHECK_STEPS, CHECK_WARMUP = 232, 6, 1


def fingerprint(model: Path) -> str:
    """Of a checkpoint's weights: pictures of a model that has been trained further are not to be compared."""
    digest = hashlib.sha256()
    for file in sorted(model.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


@jax.jit
def decode(vae: VAE, latents: Array) -> Array:
    """Pictures [B, H, W, 3] in [0, 1] of the pipeline's latents [B, C, h, w], on one device."""
    image = vae.decode(latents.transpose(0, 2, 3, 1) / vae.config.scaling_factor, Whole())
    return jnp.clip(image.astype(jnp.float32) / 2 + 0.5, 0, 1)


class Studio:
    """One model in memory for all settings; latents are kept in `folder`, a megabyte for 64 pictures.

    All pictures are decoded on one device, so that what is measured is the denoising: a spread decoder gives the same
    to rounding.

    Args:
        advance: called with the number of pictures after each of their steps.
    """

    def __init__(self, model: Path, prompts: list[str], batch: int, folder: Path, advance: Callable[[int], Any]):
        self.model, self.prompts, self.folder, self.advance = model, prompts, folder, advance
        count = -(-len(prompts) // batch)
        self.batch = -(-len(prompts) // count)  # even ones: each size is compiled for

    @cached_property
    def pipe(self) -> StableDiffusionXLPipeline:
        return self._load(jnp.float32)

    def _load(self, dtype: Any) -> StableDiffusionXLPipeline:
        pipe = StableDiffusionXLPipeline.from_pretrained(self.model, dtype=dtype, progress=False)
        pipe.set_progress_bar_config(disable=True)
        self.scheduler = pipe.scheduler.to_config()
        return pipe

    def _choose(self, pipe: StableDiffusionXLPipeline, parallel: Parallel, scheduler: str) -> None:
        pipe.parallel = parallel  # all emulate on the same device, where the weights are
        pipe.scheduler = scheduler_from_config(self.scheduler, scheduler)

    def _after_step(self, pictures: int) -> Callable[..., None]:
        def callback(*_: Any) -> None:
            self.advance(pictures)

        return callback

    def latents(self, setting: Setting) -> np.ndarray:
        """Of every prompt's picture, with the prompt's number as seed: fp32 [P, 4, 32, 32]."""
        file = self.folder / "latents" / f"{setting.name}.npy"
        if file.exists():
            return np.load(file)
        self._choose(self.pipe, setting.parallel, setting.scheduler)
        count, made = len(self.prompts), []
        for start in range(0, count, self.batch):
            numbers = [i % count for i in range(start, start + self.batch)]  # past the end: the first ones again
            out = self.pipe(
                [self.prompts[i] for i in numbers],
                seed=numbers,
                num_inference_steps=setting.steps,
                guidance_scale=GUIDANCE,
                output_type="latent",
                # With a callback steps are dispatched one by one: one program serves every number of them.
                callback_on_step_end=self._after_step(min(self.batch, count - start)),
            )
            made.append(np.asarray(out.images, np.float32))
        latents = np.concatenate(made)[:count]
        file.parent.mkdir(parents=True, exist_ok=True)
        half = file.with_suffix(".part.npy")
        np.save(half, latents)
        half.replace(file)
        return latents

    def pictures(self, setting: Setting, count: int | None = None) -> np.ndarray:
        """Those of the first `count` prompts, or all: fp32 [P, 256, 256, 3] in [0, 1]."""
        latents = self.latents(setting)[:count]
        # One by one: for no other batch is anything compiled then.
        return np.concatenate([np.asarray(decode(self.pipe.vae, latents[i : i + 1])) for i in range(len(latents))])

    def measure(self, setting: Setting) -> dict[str, Any]:
        """A row of the results."""
        pictures = self.pictures(setting)
        own = setting == setting.reference
        references = pictures if own else self._references(setting.reference)
        bad = metrics.broken(pictures)
        shown = np.rint(np.nan_to_num(pictures) * 255).astype(np.uint8)
        problems = [len(check.check(x, scenes.parse(p))) for x, p in zip(shown, self.prompts, strict=True)]
        row: dict[str, Any] = {"obeyed": problems.count(0), "problems": float(np.mean(problems))}
        row |= {"broken": np.flatnonzero(bad).tolist(), "each": {"problems": problems}}
        if own or bad.any():
            return row  # nothing to compare with, or nothing to compare
        values = {"psnr": metrics.psnr(pictures, references), "ssim": metrics.ssim(pictures, references)}
        row |= {name: float(value.mean()) for name, value in values.items()}
        row["each"] |= {name: [round(float(x), 4) for x in value] for name, value in values.items()}
        return row

    def _references(self, setting: Setting) -> np.ndarray:
        if getattr(self, "_kept", (None,))[0] != setting:
            self._kept = setting, self.pictures(setting)
        return self._kept[1]

    @cached_property
    def _half(self) -> StableDiffusionXLPipeline:
        return self._load(jnp.bfloat16)

    def check(self, mode: str) -> dict[str, Any]:
        """Two pictures with the smallest patches in bfloat16, decoded in patches too: which are broken."""
        pipe = self._half
        self._choose(pipe, Parallel(patch=8, mode=mode, warmup_steps=CHECK_WARMUP, emulate=True), "ddim")
        images = pipe(
            self.prompts[:2],
            seed=0,
            height=SMALLEST,
            num_inference_steps=CHECK_STEPS,
            guidance_scale=GUIDANCE,
            output_type="np",
            callback_on_step_end=self._after_step(len(self.prompts[:2])),
        ).images
        deviation = float(np.nan_to_num(images).std((1, 2, 3)).min())
        return {"height": SMALLEST, "patch": 8, "dtype": "bfloat16", "deviation": round(deviation, 4)} | {
            "broken": np.flatnonzero(metrics.broken(images)).tolist()
        }
