"""Measure how patches on several devices change the pictures of a model: PSNR, SSIM, LPIPS and correctness.

    python examples/quality.py --out runs/quality                    # every mode with 2, 4 and 8 patches, 64 prompts
    python examples/quality.py --out runs/robust --only robustness --prompts 8
    python examples/quality.py --out runs/few --only samplers steps --modes stale_gn sync_gn --prompts 8:40
    python examples/quality.py --out runs/sdxl --model sdxl --prompts prompts.txt --dtype bfloat16 --batch 1
    python examples/quality.py --out runs/quick --quick              # 4 prompts, a few settings

The devices are emulated, so any machine will do; SDXL itself wants a GPU. Each picture is compared with that of one
device that has the same prompt, seed and everything else; the tables show differences from `corrected_async_gn`, paired
by picture, with standard errors. LPIPS is measured if the package `lpips` or `torchmetrics` is installed. Whether a
picture shows what its prompt says is judged for the demo world's own prompts, at 256x256.

A group of settings is a table: one thing is varied, the rest is 4 patches, 25 steps, warm-up 4, DDIM, guidance 5, fp32.

{groups}

With the demo model, a step of 8 pictures over 4 patches takes 0.6 s of a CPU core, and the two programs of a mode
compile in 40 s, once: the group robustness takes about 15 minutes for each mode with 8 prompts and two cores.

The study can be stopped at any time: settings that are in the folder are not computed again. Each is stored at once,
with the commit and the date. To measure stored pictures anew, delete results.json and keep the folder latents.

Writes results.json, report.md (Markdown tables, and which expectations hold), plot.png, sheet.png (every mode, with
differences) and tradeoff.png (quality over estimated speed). The exit status is 1 if any picture is black or not
finite.
"""

import argparse
import shutil
import sys
import textwrap
from fnmatch import fnmatch
from pathlib import Path

import jax
from quality_study import figures, report, settings
from quality_study.evaluation import CHECK_PICTURES, CHECK_STEPS, Evaluator, Model, latents_of
from quality_study.paired import describe
from quality_study.prompts import Prompts, read_prompts
from quality_study.results import Results
from quality_study.settings import GROUPS, MODES_COMPARED, ROBUSTNESS, Setting
from quality_study.sheet import sheet
from quality_study.tradeoff import read_costs, tradeoff
from tqdm import tqdm

from distrijax import DistrijaxError

COSTS = Path(__file__).parents[1] / "docs" / "measurements" / "modes.json"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        for name in ("batch", "sheet"):
            if getattr(options, name) < 1:
                raise DistrijaxError(f"--{name} is {getattr(options, name)}; it must be 1 or more")
        base = (settings.QUICK if options.quick else settings.BASE).but(dtype=options.dtype)
        plan = chosen_settings(options, base)
        if options.list:
            print("\n".join(setting.name for setting in plan))
            return 0
        return study(options, base, plan)
    except DistrijaxError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    groups = [("robustness", f"all but modes: {', '.join(ROBUSTNESS)}")]
    for group, varied in GROUPS.items():
        rows = "; ".join(describe(changes, (256, 256)) for changes in varied)
        groups.append((group, f"{rows}{', with every mode' if group == 'modes' else ''}"))
    listed = "\n".join(
        textwrap.fill(text, 120, initial_indent=f"  {name:<12}", subsequent_indent=" " * 14) for name, text in groups
    )
    usage = str(__doc__).format(groups=listed)
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder (default: %(default)s)")
    prompts = "a number of the demo world's, unseen in training; A:B for those from A on and before B; or a text file "
    prompts += "with a prompt on each line (default: 64; --quick: 4)"
    parser.add_argument("--prompts", metavar="N|A:B|FILE", help=prompts)
    model = "demo, sdxl (the base model, from the hub), or what from_pretrained takes (default: %(default)s)"
    parser.add_argument("--model", default="demo", help=model)
    dtypes = ("float32", "bfloat16")
    parser.add_argument("--dtype", choices=dtypes, default=dtypes[0], help="where it is not varied (default: float32)")
    only = "groups of settings, names of settings or patterns such as 'naive*'; what they are compared with is added "
    parser.add_argument("--only", nargs="+", metavar="NAME", help=only + "(default: modes warmup steps)")
    modes = f"what is compared with {settings.BASELINE} (default: all in the group modes, elsewhere {_own()})"
    parser.add_argument("--modes", nargs="+", metavar="MODE", help=modes)
    parser.add_argument("--quick", action="store_true", help="only a few settings, of 10 steps, in place of the groups")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="largest batch size (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print the names of the settings, and end")
    parser.add_argument("--no-check", action="store_true", help="skip the smallest patches in bfloat16")
    parser.add_argument("--sheet", type=int, default=4, metavar="N", help="pictures on the contact sheet (default: 4)")
    costs = (
        "seconds of a step in each mode, from docs/measurements/modes.py, for tradeoff.png (default: the stored ones)"
    )
    parser.add_argument("--costs", type=Path, metavar="FILE", help=costs)
    again = "make these anew, names or patterns such as 'stale_gn*': their code has changed"
    parser.add_argument("--again", nargs="+", metavar="PATTERN", default=[], help=again)
    parser.add_argument("--restart", action="store_true", help="delete the results in the folder first")
    return parser


def _own() -> str:
    return ", ".join(settings.OWN) or "none"


def chosen_settings(options: argparse.Namespace, base: Setting) -> list[Setting]:
    """Return the settings that the options ask for, in order."""
    if strange := [mode for mode in options.modes or () if mode not in MODES_COMPARED]:
        raise DistrijaxError(f"--modes: there is no mode {strange[0]!r}; choose among {', '.join(MODES_COMPARED)}")
    if options.quick:
        plan, groups, names = settings.quick(base, options.modes), [], options.only or []
    else:
        asked = options.only or ["modes", "warmup", "steps"]
        names = [name for name in asked if name not in GROUPS and name != "robustness"]
        groups = [g for name in asked for g in (ROBUSTNESS if name == "robustness" else (name,)) if g in GROUPS]
        plan = settings.grouped(base, GROUPS if names else groups, options.modes)
    for name in names:
        if not any(fnmatch(setting.name, name) for setting in plan):
            raise DistrijaxError(
                f"--only {name} matches no setting; the groups are robustness, {', '.join(GROUPS)}; --list prints names"
            )
    if names:
        found = (s for s in plan if any(fnmatch(s.name, name) for name in names))
        plan = settings.with_references([*settings.grouped(base, groups, options.modes), *found])
    return plan


def study(options: argparse.Namespace, base: Setting, plan: list[Setting]) -> int:
    prompts = read_prompts(options.prompts or ("4" if options.quick else "64"))
    costs = None
    if options.costs is not None or COSTS.exists():
        costs = read_costs(options.costs or COSTS)
    model = Model(options.model)
    if options.restart:
        (options.out / "results.json").unlink(missing_ok=True)
        shutil.rmtree(options.out / "latents", ignore_errors=True)
    results = Results(
        options.out, {"model": Path(options.model).name, "weights": model.fingerprint, "prompts": prompts.name}
    )
    for setting in [s for s in results.measurements if any(fnmatch(s.name, pattern) for pattern in options.again)]:
        del results.measurements[setting]
        latents_of(options.out, setting).unlink(missing_ok=True)
    jax.config.update("jax_default_matmul_precision", "highest")  # GPUs round fp32 products to 10 bits by default
    missing = [s for s in plan if s not in results.measurements]
    unchecked = [m for m in MODES_COMPARED if m not in results.checks and not options.no_check]
    total = sum(s.steps for s in missing) * len(prompts) + len(unchecked) * CHECK_STEPS * CHECK_PICTURES
    with tqdm(total=total, unit="picture-step", desc="quality", smoothing=0.02) as bar:
        evaluator = Evaluator(model, prompts, options.batch, options.out, bar.update)
        for setting in missing:
            bar.set_postfix_str(setting.name)
            results.add(setting, evaluator.measure(setting))
        for mode in unchecked:
            bar.set_postfix_str(f"{mode}, smallest patches, bfloat16")
            results.add_check(mode, evaluator.check(mode))
    measurements = results.measurements
    text = report.report(results, base, options.modes, len(prompts), model.size)
    (options.out / "report.md").write_text(text)
    figures.plot(measurements, base, options.out / "plot.png")
    draw_sheet(options, base, evaluator, results, prompts)
    if costs is not None:
        tradeoff(measurements, base, costs, options.out / "tradeoff.png")
    print(report.groups(measurements, base, options.modes, model.size))
    broken = report.broken(measurements, results.checks)
    print("\n".join(["", *(f"broken: {name}" for name in broken), f"written to {options.out}"]))
    return 1 if broken else 0


def draw_sheet(
    options: argparse.Namespace, base: Setting, evaluator: Evaluator, results: Results, prompts: Prompts
) -> None:
    """Draw the modes with the base setting, for the first prompts and that in which the baseline is worst."""
    columns = [base.reference, *(base.but(mode=mode) for mode in MODES_COMPARED)]
    columns = [s for s in columns if s in results.measurements and not results.measurements[s].broken]
    if len(columns) < 2 or columns[0] != base.reference:
        return
    indices = list(range(len(prompts)))[: options.sheet]
    psnr = results.measurements[base].psnr if base in columns else []
    if psnr and (worst := psnr.index(min(psnr))) not in indices:
        indices[-1] = worst
    sheet(
        columns,
        [evaluator.pictures(s, indices) for s in columns],
        results.measurements,
        [(i, prompts.texts[i]) for i in indices],
        evaluator.model.row_multiple,
        options.out / "sheet.png",
    )


if __name__ == "__main__":
    sys.exit(main())
