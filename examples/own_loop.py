"""Write the denoising loop yourself: models and schedulers are functions of arrays, and run without the pipeline.

python examples/own_loop.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from distrijax import VAE, StableDiffusionXLPipeline, UNet
from distrijax.models.unet import Conditioning
from distrijax.schedulers import Scheduler


@partial(jax.jit, static_argnames="scheduler")
def sample(
    unet: UNet, vae: VAE, latents: Array, cond: Conditioning, table: dict, timesteps: Array, scale: Array,
    *, scheduler: Scheduler,
) -> Array:  # fmt: skip
    """Return the picture [B, H, W, 3] in [0, 1] of noise `latents` [B, h, w, C], the whole loop as one program."""

    def step(carry, now):
        latents, state = carry
        coefficients, timestep = now
        x = scheduler.scale_model_input(coefficients, latents)
        without, prompted = jnp.split(unet(jnp.concatenate([x, x]), timestep, cond).astype(jnp.float32), 2)
        prediction = without + scale * (prompted - without)  # classifier-free guidance
        return scheduler.step(coefficients, state, prediction, latents, None), None

    (latents, _), _ = jax.lax.scan(step, (latents, scheduler.init_state(latents)), (table, timesteps))
    return jnp.clip(vae.decode(latents / vae.config.scaling_factor) / 2 + 0.5, 0, 1)


def picture(pipe: StableDiffusionXLPipeline, prompt: str, noise: Array, steps: int, scale: float) -> Array:
    """Return the picture that `pipe` makes of `noise` [1, h, w, C], by a loop of our own."""
    stages = zip((pipe.tokenizer, pipe.tokenizer_2), (pipe.text_encoder, pipe.text_encoder_2), strict=True)
    encodings = [e(jnp.asarray(t([prompt]))) for t, e in stages if t is not None and e is not None]
    context, pooled = jnp.concatenate([e.hidden_states[-2] for e in encodings], -1), encodings[-1].pooled
    # The branch without the prompt comes first; SDXL's stands for an empty prompt by zeros.
    context, pooled = (jnp.concatenate([jnp.zeros_like(x), x]) for x in (context, pooled))
    size = [pipe.vae_scale_factor * n for n in noise.shape[1:3]]
    time_ids = jnp.array([[*size, 0, 0, *size]] * 2, jnp.float32)  # original size, crop, target size
    schedule = pipe.scheduler.schedule(steps)
    return sample(
        pipe.unet, pipe.vae, noise * schedule.init_noise_sigma, pipe.unet.condition(context, pooled, time_ids),
        schedule.coefficients, schedule.timesteps, jnp.float32(scale), scheduler=pipe.scheduler,
    )  # fmt: skip


if __name__ == "__main__":
    pipe = StableDiffusionXLPipeline.from_pretrained("demo")
    noise = jax.random.normal(jax.random.key(0), (1, 32, 32, 4))
    image = picture(pipe, "a red circle above a blue square", noise, steps=25, scale=5.0)
    Image.fromarray(np.asarray(jnp.rint(image[0] * 255)).astype(np.uint8)).save("picture.png")
