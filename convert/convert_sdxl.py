"""Convert an SDXL checkpoint to distrijax's own form, an orbax checkpoint: the same as `distrijax convert`.

python convert/convert_sdxl.py stabilityai/stable-diffusion-xl-base-1.0 sdxl --variant fp16
python convert/convert_sdxl.py sd_xl_base_1.0.safetensors sdxl --tokenizer clip-vit-large-patch14
"""

import sys

from distrijax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
