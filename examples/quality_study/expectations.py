"""What one expects of displaced patches, and whether the measurements show it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from quality_study.paired import Paired
from quality_study.results import Measurements
from quality_study.settings import DISPLACED, ONE_DEVICE, Setting, vary_only

FAR = 3.0  # dB: what "far worse" means
SIGNIFICANT = 2.0  # standard errors of the mean difference; less is undecided
VERDICTS = ("does not hold", "undecided", "holds")
FRESHER_MOMENTS = (("sync_gn", "corrected_async_gn"), ("corrected_async_gn", "stale_gn"))
EXCHANGING = tuple(mode for mode in DISPLACED if mode != "no_sync")  # modes that exchange something in every step


@dataclass(frozen=True)
class Expectation:
    """The claim that pictures of `better` are nearer to one device's than those of `worse`, by at least `margin` dB."""

    claim: str
    better: Setting
    worse: Setting
    margin: float = 0.0


def expectations(settings: Collection[Setting]) -> Iterator[Expectation]:
    """Yield every expectation about these settings: pairs that differ in one factor, neighbours if it is a number."""
    for s in settings:
        if s.mode == "naive_patch":
            others = [o for o in settings if o.mode not in (ONE_DEVICE, s.mode) and vary_only(o, s, "mode", "warmup")]
            yield from (Expectation("naive is far worst", other, s, FAR) for other in others)
        if s.mode == "separate_gn":
            for mode in ("corrected_async_gn", "stale_gn"):
                if s.but(mode=mode) in settings:
                    yield Expectation("separate is worse than stale and corrected", s.but(mode=mode), s)
        for better, worse in FRESHER_MOMENTS:
            if s.mode == better and s.but(mode=worse) in settings:
                yield Expectation("fresher moments are better", s, s.but(mode=worse))
        if s.mode not in (ONE_DEVICE, "full_sync") and (more := _next(settings, s, "patch")):
            yield Expectation("more patches are worse", s, more)
        if s.mode in DISPLACED and (more := _next(settings, s, "warmup")):
            yield Expectation("more warm-up is better", more, s)
        if s.mode in EXCHANGING and (more := _next(settings, s, "steps")):
            yield Expectation("more steps are better, with the same warm-up", more, s)
        if s.mode in EXCHANGING and (more := _next_in_proportion(settings, s)):
            yield Expectation("more steps are better, with warm-up in proportion", more, s)


def _next(settings: Collection[Setting], setting: Setting, factor: str) -> Setting | None:
    """Return the setting with the next larger value of a factor and everything else equal."""
    value = getattr(setting, factor)
    larger = [s for s in settings if vary_only(s, setting, factor) and getattr(s, factor) > value]
    return min(larger, key=lambda s: getattr(s, factor), default=None)


def _next_in_proportion(settings: Collection[Setting], setting: Setting) -> Setting | None:
    """Return the setting with the next larger number of steps and the same fraction of synchronous ones."""
    steps = sorted({s.steps for s in settings if s.steps > setting.steps})
    return next((s for s in map(setting.in_proportion, steps) if s in settings), None)


def judge(measurements: Measurements, expected: Expectation) -> tuple[str, float, float]:
    """Return one of `VERDICTS`, the mean difference in dB over prompts, and its standard error."""
    pair = Paired.of(measurements[expected.better].psnr, measurements[expected.worse].psnr)
    excess = pair.mean - expected.margin
    verdict = "undecided" if abs(excess) < SIGNIFICANT * pair.error else "holds" if excess > 0 else "does not hold"
    return verdict, pair.mean, pair.error
