"""Draw one prompt and seed of the demo model with every sampler, in 14 steps.

python docs/figures/samplers.py docs/figures/samplers.png
"""

import sys

from PIL import Image, ImageDraw

from distrijax import StableDiffusionXLPipeline, scheduler_from_config
from distrijax.schedulers import SAMPLERS

SIZE, LINE, COLUMNS = 160, 14, 5


def main() -> None:
    pipe = StableDiffusionXLPipeline.from_pretrained("demo")
    own = pipe.scheduler.config
    names = [sampler.name for sampler in SAMPLERS if sampler.name != "TCD"]  # which is for models distilled for it
    names += ["DPM++ 2M Karras", "DPM++ 2M SDE Karras", "dpmsolver_singlestep"]
    sheet = Image.new("RGB", (COLUMNS * SIZE, -(-len(names) // COLUMNS) * (SIZE + LINE)), "white")
    for i, name in enumerate(names):
        pipe.scheduler = scheduler_from_config({**own, "clip_sample": False}, name)
        picture = pipe("a red circle above a blue square", num_inference_steps=14, seed=3).images[0]
        x, y = i % COLUMNS * SIZE, i // COLUMNS * (SIZE + LINE)
        sheet.paste(picture.resize((SIZE, SIZE)), (x, y + LINE))
        ImageDraw.Draw(sheet).text((x + 3, y + 1), name, fill="black")
    sheet.quantize(128).save(sys.argv[1] if len(sys.argv) > 1 else "samplers.png")


if __name__ == "__main__":
    main()
