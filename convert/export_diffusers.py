"""Write a checkpoint as a diffusers folder: the same as `distrijax convert --to diffusers`.

python convert/export_diffusers.py sdxl sdxl-diffusers
python convert/export_diffusers.py sdxl sdxl-diffusers --dtype float16 --target-variant fp16
"""

import sys

from distrijax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--to", "diffusers"]))
