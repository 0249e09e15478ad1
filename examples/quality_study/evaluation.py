"""Make the pictures of a setting and measure them."""

import hashlib
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from demo_world import captions, judge
from jax import Array
from jax.typing import DTypeLike

from distrijax import Parallel, StableDiffusionXLPipeline, scheduler_from_config
from distrijax.models.vae import VAE
from distrijax.nn.exchange import WHOLE
from quality_study import metrics
from quality_study.results import Check, Measurement
from quality_study.settings import Setting

GUIDANCE = 5.0
# 29 rows of latents: seven of eight devices have four each and the last one has one, at the U-Net's lowest level too.
SMALLEST, CHECK_STEPS, CHECK_WARMUP, CHECK_PICTURES = 232, 6, 1, 2


def fingerprint(model: Path) -> str:
    """Return a hash of a checkpoint's weights: pictures of different models must not be compared."""
    digest = hashlib.sha256()
    for file in sorted(model.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def load(model: Path, dtype: DTypeLike) -> StableDiffusionXLPipeline:
    """Return the pipeline of a checkpoint, without progress bars."""
    pipe = StableDiffusionXLPipeline.from_pretrained(model, dtype=dtype, progress=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@jax.jit
def decode(vae: VAE, latents: Array) -> Array:
    """Decode the pipeline's latents [B, C, h, w] on one device into pictures [B, H, W, 3] in [0, 1]."""
    image = vae.decode(latents.transpose(0, 2, 3, 1) / vae.config.scaling_factor, WHOLE)
    return jnp.clip(image.astype(jnp.float32) / 2 + 0.5, 0, 1)


class Evaluator:
    """Makes and measures pictures of any setting, with one model in memory.

    All pictures are decoded on one device, so that only the denoising is measured: a decoder on several devices gives
    equal pictures except for rounding.

    Args:
        load: Returns the pipeline with weights of a data type.
        prompts: Prompts of the pictures.
        batch: Largest batch size.
        folder: Folder for the latents of all settings: a megabyte for 64 pictures.
        advance: Called after each step with the number of pictures in the batch.
    """

    def __init__(
        self,
        load: Callable[[DTypeLike], StableDiffusionXLPipeline],
        prompts: list[str],
        batch: int,
        folder: Path,
        advance: Callable[[int], object],
    ):
        self.pipeline = cache(load)
        self.prompts, self.folder, self.advance = prompts, folder, advance
        count = -(-len(prompts) // batch)
        self.batch = -(-len(prompts) // count)  # equal batches: another size would compile another program
        self.references = lru_cache(maxsize=1)(self.pictures)

    def latents(self, setting: Setting) -> np.ndarray:
        """Return the latents of all prompts, fp32 [P, 4, 32, 32]; the seed is the prompt's index."""
        file = self.folder / "latents" / f"{setting.name}.npy"
        if file.exists():
            return np.load(file)
        count, batches = len(self.prompts), []
        for start in range(0, count, self.batch):
            indices = [i % count for i in range(start, start + self.batch)]  # the last batch repeats the first prompts
            images = self._generate(
                self.pipeline(jnp.float32),
                setting.parallel,
                setting.scheduler,
                [self.prompts[i] for i in indices],
                progress=min(self.batch, count - start),
                seed=indices,
                num_inference_steps=setting.steps,
                output_type="latent",
            )
            batches.append(images.astype(np.float32))
        latents = np.concatenate(batches)[:count]
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part.npy")
        np.save(partial, latents)
        partial.replace(file)
        return latents

    def pictures(self, setting: Setting, count: int | None = None) -> np.ndarray:
        """Return the pictures of the first `count` prompts, or of all: fp32 [P, 256, 256, 3] in [0, 1]."""
        latents, vae = self.latents(setting)[:count], self.pipeline(jnp.float32).vae
        # One by one, so that no other batch size compiles another program.
        return np.concatenate([np.asarray(decode(vae, latents[i : i + 1])) for i in range(len(latents))])

    def measure(self, setting: Setting) -> Measurement:
        pictures = self.pictures(setting)
        shown = np.rint(np.nan_to_num(pictures) * 255).astype(np.uint8)
        problems = [
            len(judge.problems(picture, captions.parse(prompt)))
            for picture, prompt in zip(shown, self.prompts, strict=True)
        ]
        broken = np.flatnonzero(metrics.broken(pictures)).tolist()
        if broken or setting == setting.reference:
            return Measurement(problems, broken)
        references = self.references(setting.reference)
        values = [metric(pictures, references) for metric in (metrics.psnr, metrics.ssim)]
        return Measurement(problems, broken, *([round(float(x), 4) for x in value] for value in values))

    def check(self, mode: str) -> Check:
        """Make two pictures with the smallest patches in bfloat16, decoded in patches too."""
        patch, count = 8, min(CHECK_PICTURES, len(self.prompts))
        images = self._generate(
            self.pipeline(jnp.bfloat16),
            Parallel(patch=patch, mode=mode, warmup_steps=CHECK_WARMUP, emulate=True),
            "ddim",
            self.prompts[:count],
            progress=count,
            seed=0,
            num_inference_steps=CHECK_STEPS,
            height=SMALLEST,
            output_type="np",
        )
        deviation = float(np.nan_to_num(images).std((1, 2, 3)).min())
        broken = np.flatnonzero(metrics.broken(images)).tolist()
        return Check(SMALLEST, patch, "bfloat16", round(deviation, 4), broken)

    def _generate(
        self,
        pipe: StableDiffusionXLPipeline,
        parallel: Parallel,
        scheduler: str,
        prompts: list[str],
        *,
        progress: int,
        **options: Any,
    ) -> np.ndarray:
        """Return the pipeline's output, and call `advance` with `progress` after each step."""
        pipe.parallel = parallel  # all settings are emulated on the device that holds the weights
        pipe.scheduler = scheduler_from_config(pipe.scheduler.config, scheduler)

        # With a callback, steps are dispatched one by one: one program serves every number of steps.
        def on_step_end(*_: object) -> None:
            self.advance(progress)

        output = pipe(prompts, guidance_scale=GUIDANCE, callback_on_step_end=on_step_end, **options)
        return np.asarray(output.images)
