"""The demo model's LoRA does what it is for: shapes become outlines."""

import numpy as np

from distrijax import StableDiffusionXLPipeline
from distrijax.demo import ADAPTERS


def test_files_are_small() -> None:
    """The package must stay small: wheels, clones and installations all carry it."""
    assert [path.name for path in sorted(ADAPTERS.iterdir())] == ["outlines.safetensors"]
    assert sum(path.stat().st_size for path in ADAPTERS.iterdir()) < 200_000


def test_shapes_become_outlines() -> None:
    """The middle of a circle has its colour without the LoRA, and the background's with it; the rim has its colour."""
    pipe = StableDiffusionXLPipeline.from_pretrained("demo", progress=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 12, "seed": [1, 2], "num_images_per_prompt": 2, "output_type": "np"}
    plain = pipe("a large red circle", **call).images
    pipe.load_lora_weights("demo:outlines")
    outlines = pipe("a large red circle", **call).images
    pipe.disable_lora()
    assert np.array_equal(pipe("a large red circle", **call).images, plain)
    for filled, outline in zip(plain, outlines, strict=True):
        for picture, hollow in (filled, False), (outline, True):
            red = (picture[..., 0] > 0.6) & (picture[..., 1] < 0.4) & (picture[..., 2] < 0.4)
            rows, columns = np.nonzero(red)
            assert len(rows) > 1000
            row, column = int(rows.mean()), int(columns.mean())
            middle = picture[row - 4 : row + 4, column - 4 : column + 4]
            background = picture[:8, :8].mean((0, 1))
            assert bool(np.abs(middle.mean((0, 1)) - background).max() < 0.15) == hollow
