"""What patches over several devices do to a picture: PSNR, SSIM and obedience, on the built-in demo model.

    python examples/quality.py --out runs/quality              # 64 prompts
    python examples/quality.py --out runs/quick --quick        # 4 prompts, a few settings: 6 minutes
    python examples/quality.py --out runs/quality --only 'naive*' '*-n8-*'

The devices are emulated, which any machine can do. By default each mode is run with 2, 4 and 8 patches (25 steps,
warm-up 4, DDIM), and around the default mode with 4 patches the warm-up (0, 1, 2, 4, 8), the steps (10, 25, 50; with
the same warm-up, and with one in proportion) and the scheduler (ddim, euler) are varied one at a time. In the end, each
mode makes pictures of its smallest patches in bfloat16. Settings that are in the folder already are not computed again:
stop it when you like, and go on later.

A denoising step of one picture takes 0.13 s on two idle CPU cores, each of 50 programs some 10 s to compile the first
time: 64 prompts take over two hours, 24 about one. With fewer, more comparisons are undecided.

Writes results.json, report.md (tables, and where the expected order does not show), plot.png and sheet.png. The exit
status is 1 if any picture is black or not finite.
"""

import argparse
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path

import jax
from quality_study import figures, report, settings
from quality_study.making import CHECK_STEPS, GUIDANCE, Studio, fingerprint
from quality_study.results import Results
from quality_study.settings import Setting
from tqdm import tqdm

from distrijax import DistrijaxError
from distrijax.demo import MODEL, scenes


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder (default: %(default)s)")
    parser.add_argument("--prompts", type=int, help="how many, none of which training saw (default: 64; --quick: 4)")
    parser.add_argument("--batch", type=int, default=16, help="pictures made at once, at most (default: %(default)s)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="few settings of 10 steps")
    which.add_argument("--full", action="store_true", help="the whole product of all factors: a day")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="settings whose names match, and their references")
    parser.add_argument("--list", action="store_true", help="print the names of the settings, and which are there")
    parser.add_argument("--no-check", action="store_true", help="leave out the smallest patches in bfloat16")
    parser.add_argument(
        "--sheet", type=int, default=6, metavar="ROWS", help="prompts on the contact sheet (default: 6)"
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="another checkpoint of the demo's world")
    parser.add_argument("--anew", action="store_true", help="forget what is in the folder")
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
    about = {"model": fingerprint(options.model), "prompts": count, "guidance": GUIDANCE}
    if options.anew and not options.list:
        (options.out / "results.json").unlink(missing_ok=True)
        shutil.rmtree(options.out / "latents", ignore_errors=True)
    results = Results(options.out, about)
    if options.list:
        for setting in plan:
            print(setting.name, "(there)" if setting in results.rows else "")
        return 0
    jax.config.update("jax_default_matmul_precision", "highest")  # GPUs round products of fp32 to 10 bits by default
    prompts = scenes.held_out_prompts(count)
    missing = [s for s in plan if s not in results.rows]
    unchecked = [m for m in settings.SPREAD if m not in results.checks and not options.no_check]
    total = sum(s.steps for s in missing) * count + len(unchecked) * CHECK_STEPS * 2
    with tqdm(total=total, unit="picture-step", desc="quality", smoothing=0.02) as bar:
        studio = Studio(options.model, prompts, options.batch, options.out, bar.update)
        for setting in missing:
            bar.set_postfix_str(setting.name)
            results.add(setting, studio.measure(setting))
        for mode in unchecked:
            bar.set_postfix_str(f"{mode}, smallest patches, bfloat16")
            results.add_check(mode, studio.check(mode))
    rows = results.rows
    (options.out / "report.md").write_text(report.report(about, base, rows, results.checks))
    figures.plot(rows, base, options.out / "plot.png")
    columns = [s for s in settings.columns(base) if s in rows]
    if columns:
        shown = prompts[: options.sheet]
        pictures = [studio.pictures(s, len(shown)) for s in columns]
        figures.sheet(columns, pictures, rows, shown, options.out / "sheet.png")
    print(report.matrix(rows, base), report.order(rows), sep="\n\n")
    bad = report.broken(rows, results.checks)
    print("\n".join(["", *(f"broken: {name}" for name in bad), f"written to {options.out}"]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
