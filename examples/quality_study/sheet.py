"""The contact sheet: one device and every mode side by side, with what differs and where slabs meet."""

import textwrap
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from quality_study.results import Measurements
from quality_study.settings import ONE_DEVICE, Setting

AMPLIFIED = 4
"""Factor of the differences that are shown."""
TICKS, GREY = "#d62728", "#444444"
WIDTH, GAP, LEFT, TOP, FOOT = 176, 14, 150, 64, 22  # in pixels


def sheet(
    columns: Sequence[Setting],
    pictures: Sequence[np.ndarray],
    measurements: Measurements,
    prompts: Sequence[tuple[int, str]],
    multiple: int,
    path: Path,
) -> None:
    """Draw settings side by side and prompts one below the other, each picture above its difference from one device.

    Args:
        columns: the first is one device.
        pictures: for each column, [P, H, W, 3] in [0, 1].
        prompts: for each picture, its index in the measurements, and its prompt.
        multiple: latent rows of a slab are a multiple of this.
    """
    height = round(WIDTH * pictures[0].shape[1] / pictures[0].shape[2])
    row = 2 * (height + 4) + FOOT
    canvas = Image.new("RGB", (LEFT + len(columns) * (WIDTH + GAP), TOP + len(prompts) * row), "white")
    draw, font, bold = ImageDraw.Draw(canvas), _font(13), _font(13, "bold")
    draw.multiline_text(
        (8, 8), f"lower pictures: difference\nfrom one device x {AMPLIFIED}\nred: where slabs meet", GREY, _font(10)
    )
    for i, (setting, images) in enumerate(zip(columns, pictures, strict=True)):
        x, m = LEFT + i * (WIDTH + GAP), measurements[setting]
        title = "one device" if setting.mode == ONE_DEVICE else setting.mode
        mean = f"{m.mean_psnr:.1f} dB, {m.mean_ssim:.4f}" if m.psnr else f"{setting.steps} steps, {setting.scheduler}"
        draw.text((x + WIDTH // 2, 20), title, "black", bold if len(title) < 20 else _font(11, "bold"), anchor="mm")
        draw.text((x + WIDTH // 2, 40), f"mean {mean}" if m.psnr else mean, GREY, font, anchor="mm")
        for j, image in enumerate(np.nan_to_num(images)):
            y = TOP + j * row
            canvas.paste(_shown(image, height), (x, y))
            if setting.mode == ONE_DEVICE:
                continue
            difference = AMPLIFIED * np.abs(image - np.nan_to_num(pictures[0][j]))
            canvas.paste(_shown(np.clip(difference, 0, 1), height), (x, y + height + 4))
            for boundary in boundaries(setting, image.shape[0], multiple):
                for top in (y, y + height + 4):
                    tick = top + round(boundary * height / image.shape[0])
                    for start in (x - 6, x + WIDTH):
                        draw.line((start, tick, start + 5, tick), TICKS, 2)
            if m.psnr:
                index = prompts[j][0]
                text = f"{m.psnr[index]:.1f} dB, {m.ssim[index]:.4f}"
                draw.text((x + WIDTH // 2, y + 2 * height + 15), text, GREY, font, anchor="mm")
    for j, (_, prompt) in enumerate(prompts):
        caption = "\n".join(textwrap.wrap(prompt, 19)[:12])
        draw.multiline_text((8, TOP + j * row + height // 2), caption, "black", font, anchor="lm")
    canvas.save(path, optimize=True)


def boundaries(setting: Setting, height: int, multiple: int) -> list[int]:
    """Return the rows of pixels at which a slab of the picture begins, but for the first."""
    layout = setting.parallel.layout(height // 8, multiple)
    return [8 * row for row in accumulate(layout.counts(layout.slab).tolist()) if row < height // 8]


def _shown(image: np.ndarray, height: int) -> Image.Image:
    whole = Image.fromarray(np.rint(image * 255).astype(np.uint8))
    return whole.resize((WIDTH, height), Image.Resampling.LANCZOS)


def _font(size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import FontProperties, findfont  # DejaVu comes with matplotlib

    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans", weight=weight)), size)
