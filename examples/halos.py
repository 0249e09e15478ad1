"""Find which convolutions should wait for their halos first: quality of pictures beside estimated waiting.

    python examples/halos.py --out runs/halos                         # about 25 minutes on two cores
    python examples/halos.py --out runs/sdxl --model sdxl --prompts prompts.txt

Each row is `predicted` with the halos of some parts of the U-Net synchronous. Pictures are those of the quality study's
base setting (`examples/quality.py`), compared with one device's; what SDXL base would wait is estimated as by
`mode="auto"`, in bf16 with guidance. Pictures that are in the folder already are not made again.
"""

import argparse
import dataclasses
from pathlib import Path

from tqdm import tqdm

from distrijax import Parallel
from distrijax.checkpoint import find
from distrijax.parallel.auto.choose import estimates
from distrijax.parallel.auto.estimate import Share
from distrijax.parallel.cards import CARDS, Rates
from distrijax.parallel.policies import MODES, Policy

PARTS: tuple[tuple[str, ...], ...] = (
    ("down_blocks.0",),
    ("down_blocks.1",),
    ("down_blocks.2",),
    ("mid_block",),
    ("up_blocks.0",),
    ("up_blocks.1",),
    ("up_blocks.2", "conv_out"),
    ("up_blocks.0", "up_blocks.1"),
    ("up_blocks.1", "up_blocks.2", "conv_out"),
    ("mid_block", "up_blocks.0", "up_blocks.1"),
    ("down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"),
    ("up_blocks.0", "up_blocks.1", "up_blocks.2", "conv_out"),
    ("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2", "conv_out"),
    ("down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2", "conv_out"),
)
MACHINES = {
    "8 H100s": (CARDS["h100"], 8),
    "4 A100s": (CARDS["a100"], 4),
    "4 A100s, PCIe": (dataclasses.replace(CARDS["a100"], link=32e9), 4),
}
SIZES = (1024, 2048, 3840)


def policy(parts: tuple[str, ...]) -> Policy:
    return dataclasses.replace(MODES["predicted"], fresh_halos=tuple(f"unet.{part}" for part in parts))


ROWS = {"halos of " + ", ".join(parts): policy(parts) for parts in PARTS}
MODES |= ROWS  # before the study asks which modes there are

from quality_study.evaluation import Evaluator, Model  # noqa: E402
from quality_study.paired import Paired  # noqa: E402
from quality_study.prompts import read_prompts  # noqa: E402
from quality_study.results import Measurements, Results  # noqa: E402
from quality_study.settings import BASE, BASELINE, with_references  # noqa: E402

COMPARED = (BASELINE, "predicted", *ROWS, "halo_sync")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/halos"), help="folder (default: %(default)s)")
    parser.add_argument("--prompts", default="8:24", help="as for examples/quality.py (default: %(default)s)")
    parser.add_argument("--model", default="demo", help="as for examples/quality.py (default: %(default)s)")
    options = parser.parse_args()
    prompts, model = read_prompts(options.prompts), Model(options.model)
    results = Results(
        options.out, {"model": Path(options.model).name, "weights": model.fingerprint, "prompts": prompts.name}
    )
    evaluator = Evaluator(model, prompts, 16, options.out, lambda _: None)
    for setting in tqdm(with_references(BASE.but(mode=mode) for mode in COMPARED), unit="setting"):
        if setting not in results.measurements:
            results.add(setting, evaluator.measure(setting))
    (options.out / "halos.md").write_text(text := table(results.measurements))
    print(text, end="")


def waiting(mode: str) -> list[float]:
    """Return the part of a step that SDXL base is estimated to wait, for each of `MACHINES` and `SIZES`."""
    config, shares = find("sdxl-base").unet, []
    for card, devices in MACHINES.values():
        for size in (pixels // 8 for pixels in SIZES):
            rows = Parallel(patch=devices, emulate=True).layout(size, config.row_multiple).slab
            shares.append(estimates(config, mode, Share(size, rows, size, 2, devices), Rates.of(card)).share)
    return shares


def table(measurements: Measurements) -> str:
    """Return a Markdown table: PSNR, its difference from the baseline, and the waiting of each card and size."""
    cards = [f"{name}, {' / '.join(map(str, SIZES))}" for name in MACHINES]
    lines = [["mode", "PSNR, dB", "difference", *cards], ["---"] * (3 + len(cards))]
    baseline = measurements[BASE]
    for mode in COMPARED:
        values, waits = measurements[BASE.but(mode=mode)], iter(waiting(mode))
        pair = "" if mode == BASELINE else Paired.of(values.psnr, baseline.psnr).text(1)
        cells = [" / ".join(f"{100 * next(waits):.1f}" for _ in SIZES) + " %" for _ in MACHINES]
        lines.append([mode if mode in ROWS else f"`{mode}`", f"{values.mean_psnr:.1f}", pair, *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
