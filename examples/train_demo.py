#!/usr/bin/env python3
"""Train the demo model from scratch, on pictures that a program draws and captions from a grammar.

    pip install '.[train]'
    python examples/train_demo.py --out runs/demo                # all stages; each resumes where it was interrupted
    python examples/train_demo.py --out runs/demo --stage unet --steps 8000 --resume

To continue the training of the shipped model:

    python examples/train_demo.py --out runs/more --stage unpack
    python examples/train_demo.py --out runs/more --stage latents
    python examples/train_demo.py --out runs/more --stage unet --begin runs/more/begin
    python examples/train_demo.py --out runs/more --stage decoder
    python examples/train_demo.py --out runs/more --stage export --average runs/more/begin

A U-Net with fewer layers a block than the configured one is extended: extra layers start as identities.

glibc returns the memory of every step to the kernel, which clears it again. jemalloc keeps it and is faster:

    LD_PRELOAD=libjemalloc.so.2 MALLOC_CONF=dirty_decay_ms:-1,muzzy_decay_ms:-1 python examples/train_demo.py ...

The stages, in order: `text` (both text encoders, from captions alone), `vae` (the autoencoder), `latents` (draw and
encode the pictures once), `unet`, `decoder` (train the decoder again, on the U-Net's output), `export` (write a
diffusers folder) and `plot` (the losses of all stages). Sample sheets are written to the output folder at each
checkpoint, and the number of correct samples to `unet/adherence.jsonl`.
"""

import argparse
from pathlib import Path

import jax
from demo_training import autoencoder, common, decoder, denoiser, export, latents, text, unpack

from distrijax.demo import MODEL

STAGES = ("text", "vae", "latents", "unet", "decoder", "export", "plot")
STEPS = {"text": 1600, "vae": 1650, "latents": 10000, "unet": 5000, "decoder": 4000}  # for `latents`: pictures
DEFAULTS = ", ".join(f"{stage} {count}" for stage, count in STEPS.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, logs and sample sheets")
    parser.add_argument("--stage", choices=("all", *STAGES, "unpack"), default="all", help="default: %(default)s")
    parser.add_argument("--steps", type=int, help=f"steps of one stage, pictures for `latents` (default: {DEFAULTS})")
    parser.add_argument("--batch", type=int, default=16, help="batch size of the U-Net (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="time limit for `unet` or `decoder`")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="for the U-Net (default: muon)")
    parser.add_argument("--begin", type=Path, help="folder of U-Net checkpoints to start from (weights only)")
    parser.add_argument("--average", type=Path, help="folder of U-Net checkpoints to average with (`export`)")
    parser.add_argument("--devices", type=int, default=2, help="CPU devices that share a U-Net batch (default: 2)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of the stage")
    parser.add_argument("--source", type=Path, default=MODEL, help="model to `unpack` (default: the shipped one)")
    parser.add_argument("--target", type=Path, help="folder that `export` writes (default: OUT/sdxl-demo)")
    args = parser.parse_args()
    if args.average and args.stage != "export":
        parser.error("--average needs --stage export")
    if args.steps and args.stage not in STEPS:
        parser.error("--steps needs --stage with one of " + ", ".join(STEPS))
    jax.config.update("jax_num_cpu_devices", args.devices)
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
            logs = {name: log for name, log in logs.items() if log.exists()}
            if not logs:
                raise SystemExit(f"no stage has a loss.jsonl in {args.out}: train one first")
            common.plot_losses(logs, args.out / "loss.png")


if __name__ == "__main__":
    main()
