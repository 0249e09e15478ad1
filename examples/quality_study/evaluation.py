"""Make the pictures of a setting and measure them."""

import datetime
import hashlib
import subprocess
import time
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from demo_world import captions, drawing, judge
from jax import Array
from jax.typing import DTypeLike

from distrijax import (
    Parallel,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    scheduler_from_config,
)
from distrijax.checkpoint.load import load_part
from distrijax.checkpoint.source import open_source
from distrijax.models.vae import VAE
from distrijax.nn.exchange import WHOLE
from quality_study import metrics
from quality_study.prompts import Prompts
from quality_study.results import Check, Measurement
from quality_study.settings import Setting, Size

NAMES = {"sdxl": "stabilityai/stable-diffusion-xl-base-1.0"}
# 29 rows of latents: seven of eight devices have four each and the last one has one, at the U-Net's lowest level too.
SMALLEST, CHECK_STEPS, CHECK_WARMUP, CHECK_PICTURES = 232, 6, 1, 2


class Model:
    """A checkpoint, whose parts are read when they are needed.

    Args:
        source: what `from_pretrained` takes, or one of `NAMES`.

    Attributes:
        fingerprint: a hash of its weights: pictures of different models must not be compared.
        scheduler: the options of its scheduler.
        row_multiple: a slab has a multiple of so many latent rows.
        size: height and width of the pictures that it was trained on.
    """

    def __init__(self, source: str):
        self.source = NAMES.get(source, source)
        checkpoint, digest = open_source(self.source), hashlib.sha256()
        for name, component in sorted(checkpoint.components.items()):
            for path, array in component.stream():
                digest.update(f"{name} {path} {array.shape} {array.dtype}".encode())
                digest.update(np.asarray(array).tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self.row_multiple = checkpoint.unet.row_multiple
        height, width = checkpoint.unet.native_size
        self.scheduler = checkpoint.scheduler
        self.size: Size = height * checkpoint.vae.scale_factor, width * checkpoint.vae.scale_factor

    @cache  # noqa: B019 - one model lives as long as the study
    def pipeline(self, dtype: DTypeLike) -> StableDiffusionXLPipeline:
        """Return the pipeline, without progress bars."""
        pipe = StableDiffusionXLPipeline.from_pretrained(self.source, dtype=dtype, progress=False)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cache  # noqa: B019
    def vae(self) -> VAE:
        """Return the autoencoder in fp32, whatever the pictures were made in."""
        return load_part("vae", self.source, dtype=jnp.float32)


def latents_of(folder: Path, setting: Setting) -> Path:
    """Return the file of a setting's latents."""
    return folder / "latents" / f"{setting.name}.npy"


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
        prompts: prompts of the pictures.
        batch: largest batch size.
        folder: folder for the latents of all settings: a megabyte for 64 pictures of the demo model.
        advance: called after each batch with the number of pictures times steps.
    """

    def __init__(self, model: Model, prompts: Prompts, batch: int, folder: Path, advance: Callable[[int], object]):
        self.model, self.prompts, self.folder, self.advance = model, prompts, folder, advance
        count = -(-len(prompts) // batch)
        self.batch = -(-len(prompts) // count)  # equal batches: another size would compile another program
        self.references = lru_cache(maxsize=1)(self.pictures)

    def latents(self, setting: Setting) -> np.ndarray:
        """Return the latents of all prompts, fp32 [P, 4, h, w]."""
        file = latents_of(self.folder, setting)
        if file.exists():
            return np.load(file)
        count, batches = len(self.prompts), []
        (height, width), pipe = setting.pixels(self.model.size), self.model.pipeline(jnp.dtype(setting.dtype))
        for start in range(0, count, self.batch):
            indices = [i % count for i in range(start, start + self.batch)]  # the last batch repeats the first prompts
            begin: dict[str, Any] = {"height": height, "width": width}
            if setting.start is not None:
                starts = self.latents(setting.start)
                begin = {"image": starts[[(i + 1) % count for i in indices]], "strength": setting.strength}
            images = self._generate(
                pipe if setting.start is None else StableDiffusionXLImg2ImgPipeline.from_pipe(pipe),
                setting.parallel,
                setting.scheduler,
                [self.prompts.texts[i] for i in indices],
                seed=[self.prompts.seeds[i] for i in indices],
                num_inference_steps=setting.steps,
                guidance_scale=setting.guidance,
                output_type="latent",
                **begin,
            )
            batches.append(images.astype(np.float32))
            self.advance(min(self.batch, count - start) * setting.steps)
        latents = np.concatenate(batches)[:count]
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part.npy")
        np.save(partial, latents)
        partial.replace(file)
        return latents

    def pictures(self, setting: Setting, indices: list[int] | None = None) -> np.ndarray:
        """Return the pictures of some prompts, or of all: fp32 [P, H, W, 3] in [0, 1]."""
        latents, vae = self.latents(setting), self.model.vae()
        chosen = range(len(latents)) if indices is None else indices
        # One by one, so that no other batch size compiles another program.
        return np.concatenate([np.asarray(decode(vae, latents[i : i + 1])) for i in chosen])

    def measure(self, setting: Setting) -> Measurement:
        began = time.perf_counter()
        pictures = self.pictures(setting)
        made = {**provenance(), "seconds": round(time.perf_counter() - began, 1)}
        shown, problems = np.rint(np.nan_to_num(pictures) * 255).astype(np.uint8), []
        if self.prompts.judged and shown.shape[1:3] == (drawing.CANVAS, drawing.CANVAS):
            pairs = zip(shown, self.prompts.texts, strict=True)
            problems = [len(judge.problems(picture, captions.parse(prompt))) for picture, prompt in pairs]
        broken = np.flatnonzero(metrics.broken(pictures)).tolist()
        if broken or setting == setting.reference:
            return Measurement(problems, broken, made=made)
        references, (lpips, origin) = self.references(setting.reference), metrics.lpips()
        values = {
            name: [round(float(x), 4) for x in metric(pictures, references)]
            for name, metric in (("psnr", metrics.psnr), ("ssim", metrics.ssim), ("lpips", lpips))
            if metric is not None
        }
        return Measurement(problems, broken, **values, made=made | ({"lpips": origin} if lpips else {}))

    def check(self, mode: str) -> Check:
        """Make two pictures with the smallest patches in bfloat16, decoded in patches too."""
        patch, count = 8, min(CHECK_PICTURES, len(self.prompts))
        images = self._generate(
            self.model.pipeline(jnp.dtype(jnp.bfloat16)),
            Parallel(patch=patch, mode=mode, warmup_steps=CHECK_WARMUP, emulate=True),
            "ddim",
            self.prompts.texts[:count],
            seed=0,
            num_inference_steps=CHECK_STEPS,
            guidance_scale=5.0,
            height=SMALLEST,
            output_type="np",
        )
        self.advance(count * CHECK_STEPS)
        deviation = float(np.nan_to_num(images).std((1, 2, 3)).min())
        broken = np.flatnonzero(metrics.broken(images)).tolist()
        return Check(SMALLEST, patch, "bfloat16", round(deviation, 4), broken)

    def _generate(
        self,
        pipe: StableDiffusionXLPipeline | StableDiffusionXLImg2ImgPipeline,
        parallel: Parallel,
        scheduler: str,
        prompts: list[str],
        **options: Any,
    ) -> np.ndarray:
        """Return the pipeline's output."""
        pipe.parallel = parallel  # all settings are emulated on the device that holds the weights
        pipe.scheduler = scheduler_from_config(self.model.scheduler, scheduler)
        return np.asarray(pipe(prompts, **options).images)


@cache
def provenance() -> dict[str, str | float]:
    """Return what a measurement should say of its origin: the commit, the date, and what it ran on."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "commit": commit,
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
