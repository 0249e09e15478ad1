"""Convert an SDXL checkpoint to distrijax's own form, an orbax checkpoint. The same as `distrijax convert`.

    python convert/convert_sdxl.py stabilityai/stable-diffusion-xl-base-1.0 sdxl --variant fp16
    python convert/convert_sdxl.py sd_xl_base_1.0.safetensors sdxl --tokenizer clip-vit-large-patch14
"""

import argparse
import sys

from distrijax.checkpoint import convert
from distrijax.errors import DistrijaxError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="diffusers folder, Hugging Face hub id, or original single file (.safetensors)")
    parser.add_argument("target", help="folder to write; it appears when it is complete")
    parser.add_argument("--variant", help="ending of the weights' names in the source, such as fp16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="cast to it (default: as they are)")
    parser.add_argument("--vae", help="VAE to take instead of the source's own: folder, hub id or .safetensors file")
    parser.add_argument("--tokenizer", help="folder or hub id with CLIP's vocabulary, for a single file")
    parser.add_argument("--config", help="diffusers folder or hub id with the configuration of an unusual single file")
    parser.add_argument("--overwrite", action="store_true", help="replace the target if it is a checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = vars(parser.parse_args())
    quiet = options.pop("quiet")
    try:
        print(convert(**options, progress=not quiet))
    except DistrijaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
