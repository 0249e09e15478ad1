"""Measure how patches on several devices change the pictures of the demo model: PSNR, SSIM and correctness.

    python examples/quality.py --out runs/quality              # 64 prompts
    python examples/quality.py --out runs/quick --quick        # 4 prompts, a few settings: 6 minutes
    python examples/quality.py --out runs/quality --only 'naive*' '*-n8-*'

The devices are emulated, so any machine will do. By default each mode runs with 2, 4 and 8 patches (25 steps, warm-up
4, DDIM). Around the default mode with 4 patches, the warm-up (0, 1, 2, 4, 8), the steps (10, 25, 50; with the same
warm-up, and with one in proportion) and the scheduler (ddim, euler) are varied one at a time. Finally each mode makes
pictures with its smallest patches in bfloat16. The study can be stopped at any time: settings that are in the folder
are not computed again.

A denoising step of one picture takes 0.13 s on two idle CPU cores, and each of 50 programs compiles for about 10 s the
first time: 64 prompts take over two hours, 24 about one. With fewer prompts, more comparisons are undecided.

Writes results.json, report.md (tables, and which expectations hold), plot.png and sheet.png. The exit status is 1 if
any picture is black or not finite.
"""

import argparse
import shutil
import sys
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import jax
from demo_world.captions import held_out_prompts
from quality_study import figures, report, settings
from quality_study.evaluation import CHECK_PICTURES, CHECK_STEPS, GUIDANCE, Evaluator, fingerprint, load
from quality_study.results import Results
from quality_study.settings import Setting
from tqdm import tqdm

from distrijax import DistrijaxError
from distrijax.demo import MODEL


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder (default: %(default)s)")
    parser.add_argument("--prompts", type=int, help="number of prompts, unseen in training (default: 64; --quick: 4)")
    parser.add_argument("--batch", type=int, default=16, help="largest batch size (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="only a few settings, of 10 steps")
    which.add_argument("--full", action="store_true", help="all combinations of all factors: takes a day")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="only settings with these names, and references")
    parser.add_argument("--list", action="store_true", help="print the names of the settings, and which are measured")
    parser.add_argument("--no-check", action="store_true", help="skip the smallest patches in bfloat16")
    parser.add_argument("--sheet", type=int, default=6, metavar="N", help="prompts on the contact sheet (default: 6)")
    parser.add_argument("--model", type=Path, default=MODEL, help="checkpoint (default: the shipped demo model)")
    parser.add_argument("--restart", action="store_true", help="delete the results in the folder first")
    options = parser.parse_args(arguments)
    for name in ("prompts", "batch", "sheet"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; it must be 1 or more")
    base = settings.QUICK if options.quick else settings.BASE
    plan = settings.quick() if options.quick else settings.full() if options.full else settings.around(base)
    if options.only:
        plan = settings.with_references(s for s in plan if any(fnmatch(s.name, p) for p in options.only))
        if not plan:
            parser.error(f"--only {' '.join(options.only)} matches no setting; --list prints them")
    try:
        return study(options, base, plan)
    except DistrijaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def study(options: argparse.Namespace, base: Setting, plan: list[Setting]) -> int:
    count = options.prompts or (4 if options.quick else 64)
    if options.restart and not options.list:
        (options.out / "results.json").unlink(missing_ok=True)
        shutil.rmtree(options.out / "latents", ignore_errors=True)
    results = Results(options.out, {"model": fingerprint(options.model), "prompts": count, "guidance": GUIDANCE})
    if options.list:
        for setting in plan:
            print(setting.name, "(measured)" if setting in results.measurements else "")
        return 0
    jax.config.update("jax_default_matmul_precision", "highest")  # GPUs round fp32 products to 10 bits by default
    prompts = held_out_prompts(count)
    missing = [s for s in plan if s not in results.measurements]
    unchecked = [m for m in settings.MODES_COMPARED if m not in results.checks and not options.no_check]
    total = sum(s.steps for s in missing) * count + len(unchecked) * CHECK_STEPS * min(CHECK_PICTURES, count)
    with tqdm(total=total, unit="picture-step", desc="quality", smoothing=0.02) as bar:
        evaluator = Evaluator(partial(load, options.model), prompts, options.batch, options.out, bar.update)
        for setting in missing:
            bar.set_postfix_str(setting.name)
            results.add(setting, evaluator.measure(setting))
        for mode in unchecked:
            bar.set_postfix_str(f"{mode}, smallest patches, bfloat16")
            results.add_check(mode, evaluator.check(mode))
    measurements = results.measurements
    (options.out / "report.md").write_text(report.report(results, base))
    figures.plot(measurements, base, options.out / "plot.png")
    columns = [s for s in settings.columns(base) if s in measurements]
    if columns:
        shown = prompts[: options.sheet]
        pictures = [evaluator.pictures(s, len(shown)) for s in columns]
        figures.sheet(columns, pictures, measurements, shown, options.out / "sheet.png")
    print(report.matrix(measurements, base), report.order(measurements), sep="\n\n")
    broken = report.broken(measurements, results.checks)
    print("\n".join(["", *(f"broken: {name}" for name in broken), f"written to {options.out}"]))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
