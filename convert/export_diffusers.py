"""Write a checkpoint as a diffusers folder, which `diffusers.StableDiffusionXLPipeline.from_pretrained` loads.

    python convert/export_diffusers.py sdxl sdxl-diffusers
    python convert/export_diffusers.py sdxl sdxl-diffusers --dtype float16 --variant fp16
"""

import argparse
import sys

from distrijax.checkpoint import export
from distrijax.errors import DistrijaxError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="converted checkpoint (or whatever convert_sdxl.py takes)")
    parser.add_argument("target", help="folder to write; it appears when it is complete")
    parser.add_argument("--variant", help="ending for the written weights' names, such as fp16")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="cast to it (default: as they are)")
    parser.add_argument("--vae", help="VAE to take instead of the source's own: folder, hub id or .safetensors file")
    parser.add_argument("--tokenizer", help="folder or hub id with CLIP's vocabulary, for a single file")
    parser.add_argument("--config", help="diffusers folder or hub id with the configuration of an unusual single file")
    parser.add_argument("--overwrite", action="store_true", help="replace the target if it is a checkpoint")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = vars(parser.parse_args())
    quiet = options.pop("quiet")
    try:
        print(export(**options, progress=not quiet))
    except DistrijaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
