"""Two pipelines in one process, with other weights and on another mesh, do not disturb each other."""

from typing import Any

import jax
import numpy as np
from parallel_helpers import SMALLER, with_random_weights

from distrijax import VAE, EulerDiscreteScheduler, Parallel, StableDiffusionXLPipeline, UNet, UNetConfig, VAEConfig


def pipeline(unet: UNet, parallel: Parallel) -> StableDiffusionXLPipeline:
    vae = {"block_out_channels": [4, 8], "layers_per_block": 1, "norm_num_groups": 2, "sample_size": 16}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    pipe = StableDiffusionXLPipeline(
        unet=unet,
        vae=with_random_weights(VAE, VAEConfig.from_json(vae | blocks)),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        scheduler=EulerDiscreteScheduler(),
        parallel=parallel,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_two_pipelines_side_by_side() -> None:
    """Same shapes, other weights, another mesh: each makes its own picture, whatever the other does meanwhile."""
    rng = np.random.RandomState(0)
    embeds = ("prompt_embeds", (1, 5, 12)), ("negative_prompt_embeds", (1, 5, 12))
    pooled = ("pooled_prompt_embeds", (1, 8)), ("negative_pooled_prompt_embeds", (1, 8))
    call: dict[str, Any] = {name: rng.randn(*shape).astype(np.float32) for name, shape in (*embeds, *pooled)}
    call |= {"num_inference_steps": 2, "height": 16, "width": 16, "seed": 1, "output_type": "np"}

    first = with_random_weights(UNet, UNetConfig.from_json(SMALLER))
    second = jax.tree.map(lambda x: 0.9 * x, first)
    one, alone = pipeline(first, Parallel()), pipeline(second, Parallel(devices=(jax.devices()[1],)))
    expected, other = one(**call).images, alone(**call).images
    assert np.abs(expected - other).max() > 0.01, "the pictures are the same: they would hide any mix-up"

    mesh = Parallel(patch=2, mode="full_sync", devices=tuple(jax.devices()[2:4]))
    two = pipeline(second, mesh)
    pictures = []

    def meanwhile(pipe: StableDiffusionXLPipeline, *_: Any) -> None:
        pictures.append(two(**call).images)

    np.testing.assert_array_equal(one(**call, callback_on_step_end=meanwhile).images, expected)
    for picture in pictures:  # two devices add in another order
        np.testing.assert_allclose(picture, other, atol=1e-4)
    assert len(pictures) == 2
    assert one.parallel == Parallel()
    np.testing.assert_array_equal(one(**call).images, expected)
    assert {d for x in jax.tree.leaves(two.unet) for d in x.devices()} == set(mesh.devices or ())
