"""Draw the figure of docs/inpainting.md: python docs/figures/inpainting.py docs/figures/inpainting.png"""

import sys

import numpy as np
from PIL import Image, ImageDraw

from distrijax import StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline

FIRST = "a red circle above a blue square"
ROWS = {  # prompt -> left, top, right and bottom of what to paint, as parts of the picture
    "a red circle above a green triangle": (0.0, 0.5, 1.0, 1.0),
    "a yellow star above a blue square": (0.0, 0.0, 1.0, 0.5),
}
SIZE, GAP, TEXT = 160, 8, 20


def main(path: str) -> None:
    inpaint = StableDiffusionXLInpaintPipeline.from_pretrained("demo")
    image = StableDiffusionXLPipeline.from_pipe(inpaint)(FIRST, num_inference_steps=25, generator=0).images[0]
    sheet = Image.new("RGB", (5 * (SIZE + GAP), len(ROWS) * (SIZE + TEXT + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (prompt, box) in enumerate(ROWS.items()):
        mask = Image.new("L", image.size)
        mask.paste(255, tuple(round(part * side) for part, side in zip(box, image.size * 2, strict=True)))
        call = {"image": image, "mask_image": mask, "height": image.height, "width": image.width}
        made = inpaint(prompt, **call, num_inference_steps=25, generator=[0, 1, 2], num_images_per_prompt=3).images
        shown = Image.fromarray(np.where(np.asarray(mask)[..., None] > 0, np.uint8(255), np.uint8(60)).repeat(3, 2))
        top = row * (SIZE + TEXT + GAP)
        for column, (title, picture) in enumerate(
            zip([FIRST, "mask", prompt, "", ""], [image, shown, *made], strict=True)
        ):
            left = column * (SIZE + GAP)
            sheet.paste(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS), (left, top + TEXT))
            draw.text((left, top + 4), title, "black")
    sheet.save(path)


if __name__ == "__main__":
    main(sys.argv[1])
