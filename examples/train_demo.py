#!/usr/bin/env python3
"""Train the demo model from nothing: pictures drawn by a program, captions from a grammar.

    pip install '.[train]'
    python examples/train_demo.py --out runs/demo                # all stages, each resumed where it stopped
    python examples/train_demo.py --out runs/demo --stage unet --steps 8000 --resume

To train the shipped model further, in place of the first two stages:

    python examples/train_demo.py --out runs/more --stage unpack
    python examples/train_demo.py --out runs/more --stage latents
    python examples/train_demo.py --out runs/more --stage unet --begin runs/more/begin
    python examples/train_demo.py --out runs/more --stage decoder
    python examples/train_demo.py --out runs/more --stage export --average runs/more/begin

A U-Net with fewer layers a block than are configured grows to them: added layers begin by passing on their input.

glibc hands the memory of every step back to the kernel, which clears it anew. jemalloc keeps it, and is faster:

    LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1 python examples/train_demo.py ...

Stages, in their order: `text` (both text encoders, from words alone), `vae` (the autoencoder), `latents` (pictures are
drawn and encoded once), `unet`, `decoder` (the autoencoder's, once more, on what the U-Net makes), `export` (a
diffusers folder) and `plot` (the loss of all stages). Sample sheets and the number of captions obeyed appear in the
output folder at each checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jax

from distrijax.demo import MODEL

sys.path.insert(0, str(Path(__file__).resolve().parent))

STAGES = ("text", "vae", "latents", "unet", "decoder", "export", "plot")
STEPS = {"text": 1600, "vae": 1650, "latents": 10000, "unet": 5000, "decoder": 4000}  # of `latents`: pictures
HELP = ", ".join(f"{stage} {count}" for stage, count in STEPS.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, logs and sheets")
    parser.add_argument("--stage", choices=("all", *STAGES, "unpack"), default="all")
    parser.add_argument("--steps", type=int, help=f"steps of one stage, for `latents` pictures (default: {HELP})")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step of the U-Net (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="let `unet` or `decoder` end by then, whatever the steps")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="of the U-Net (default: muon)")
    parser.add_argument("--begin", type=Path, help="U-Net checkpoints of another run to start from, weights only")
    parser.add_argument("--average", type=Path, help="U-Net checkpoints to write the mean with (`export`)")
    parser.add_argument("--devices", type=int, default=2, help="CPU devices that share a U-Net batch (default: 2)")
    parser.add_argument("--resume", action="store_true", help="go on from the stage's last checkpoint")
    parser.add_argument("--source", type=Path, default=MODEL, help="what `unpack` reads (default: the shipped model)")
    parser.add_argument("--target", type=Path, help="where `export` writes (default: OUT/sdxl-demo)")
    args = parser.parse_args()
    if args.average and args.stage != "export":
        parser.error("--average needs --stage export")
    if args.steps and args.stage not in STEPS:
        parser.error("--steps needs --stage with one of " + ", ".join(STEPS))
    jax.config.update("jax_num_cpu_devices", args.devices)
    from demo_training import (  # after the devices are counted
        autoencoder,
        common,
        decoder,
        denoiser,
        export,
        latents,
        text,
        unpack,
    )

    args.out.mkdir(parents=True, exist_ok=True)
    resume = args.resume or args.stage == "all"
    for stage in STAGES if args.stage == "all" else (args.stage,):
        steps = args.steps or STEPS.get(stage, 0)
        if stage == "text":
            text.train(args.out, steps, resume)
        elif stage == "vae":
            autoencoder.train(args.out, steps, resume)
        elif stage == "latents":
            latents.build(args.out, steps)
        elif stage == "unet":
            options = {"minutes": args.minutes, "method": args.optimizer, "begin": args.begin}
            denoiser.train(args.out, steps, resume, batch=args.batch, **options)
        elif stage == "decoder":
            decoder.train(args.out, steps, resume, minutes=args.minutes)
        elif stage == "unpack":
            unpack.write(args.source, args.out)
        elif stage == "export":
            export.write(args.out, args.target or args.out / "sdxl-demo", args.average)
        else:
            logs = {name: args.out / name / "loss.jsonl" for name in ("text", "vae", "unet", "decoder")}
            if not (there := {name: log for name, log in logs.items() if log.exists()}):
                raise SystemExit(f"no stage has a loss.jsonl in {args.out}: train one first")
            common.plot(there, args.out / "loss.png")


if __name__ == "__main__":
    main()
