"""The base class of the schedulers: diffusers' options, checked, and the steps of a run as tables.

A scheduler is a frozen, hashable set of options, so it can be a static argument of a jitted function. `schedule()`
computes on the host everything that depends on the step but not on the picture, as float32 coefficients. `step()` is
then elementwise arithmetic, the same program for every step, and can run inside `jax.lax.scan`.

Every solver here is linear in the latents, the U-Net's predictions and noise. A step makes an estimate (of the clean
latents or of the noise, as the solver likes it), then the next latents and what it holds for later, as sums of what
there is. So `step` is written once, and a scheduler is the table of the factors in these sums:

    estimate_0 = sample, prediction                       then clipped, if clip_sample is set
    next, held = sample, prediction, noise, held, estimate_0, estimate_1, ...

`estimate_1` is the estimate of the evaluation before, and so on: a multistep solver combines several. `held` is what a
solver with several evaluations a step keeps from one to the next. The factor of `sample` in `next` is called
`next_from_sample`; a factor that a scheduler does not have is zero.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.checks import finite_number, one_of, whole_number
from distrijax.config.entry import Rule, log_ignored
from distrijax.errors import DistrijaxError
from distrijax.schedulers import ays
from distrijax.schedulers.options import ALL_OPTIONS, OPTIONS, SIGMA_OPTIONS
from distrijax.schedulers.predictions import combine, denoised_factors
from distrijax.schedulers.request import Request, custom_sigmas, custom_timesteps
from distrijax.schedulers.schedule import Array, Coefficients, Schedule, State

Config = Mapping[str, Any]
"""The contents of a `scheduler_config.json`."""


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """The options that every scheduler has, under diffusers' names; subclasses change defaults and add options.

    Attributes:
        origin: the config that it was made from, whose options of other classes `config` passes on.
        class_name: name of diffusers' class, as in a `scheduler_config.json`.
        order: 2 if each step but the last evaluates the U-Net twice; then a schedule has two rows for each.
        holds: whether a step passes on `held`.
        rules: what options may be, where it differs from `OPTIONS`.
        off: options of diffusers' class that are supported only where they do nothing.
        aliases: values of other classes' options of the same name that diffusers replaces silently.
        custom: which of "timesteps" and "sigmas" the caller of `schedule` may choose.
        whole_timesteps: whether custom timesteps must be whole numbers, because they index the training tables.
        noise_dtype: dtype in which diffusers draws the noise of steps; None if it is that of the U-Net.
        has_training_steps: whether timesteps are those of a training run, of which fractions can be taken.
        largest_eta: upper bound of `eta`; None if the scheduler ignores it.

    Raises:
        DistrijaxError: an option has the wrong type or an unsupported value.
    """

    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    origin: Config | None = dataclasses.field(default=None, compare=False, repr=False)
    _passed: frozenset[str] = dataclasses.field(init=False, compare=False, repr=False)

    class_name: ClassVar[str]
    order: ClassVar[int] = 1
    holds: ClassVar[bool] = False
    rules: ClassVar[dict[str, Rule]] = {}
    off: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[dict[str, dict[str, str]]] = {}
    custom: ClassVar[tuple[str, ...]] = ()
    whole_timesteps: ClassVar[bool] = True
    noise_dtype: ClassVar[type | None] = None
    has_training_steps: ClassVar[bool] = True
    largest_eta: ClassVar[float | None] = None

    # ----------------------------------------------------------------------------------------------------- the options

    def __new__(cls, **options: Any) -> Self:
        """Record which options were passed: `config` marks the others as defaults."""
        self = super().__new__(cls)
        object.__setattr__(self, "_passed", frozenset(options))
        return self

    def __post_init__(self) -> None:
        for option in self._options():
            value = getattr(self, option.name)
            value = self.aliases.get(option.name, {}).get(value, value) if isinstance(value, str) else value
            object.__setattr__(self, option.name, self._checked(option.name, value))
        placing = [option for option in SIGMA_OPTIONS if getattr(self, option, False)]
        if len(placing) > 1:
            raise self._error(f"{' and '.join(placing)} exclude each other; set one of them")

    @classmethod
    def from_config(cls, config: Config, **overrides: Any) -> Self:
        """Build this class from a config of any scheduler, as in diffusers.

        Args:
            config: the `config` of a scheduler or the contents of a `scheduler_config.json`. Options that this class
                does not have are ignored, and logged if no class has them; so are those that `_use_default_values`
                lists: each class has its own defaults.
            overrides: options of this class that replace those of `config`.

        Raises:
            DistrijaxError: an override is unknown, or an option's value is not supported.
        """
        if not isinstance(config, Mapping):
            raise DistrijaxError(f"{cls.class_name}: from_config takes a mapping like scheduler.config, not {config!r}")
        names = [option.name for option in cls._options()]
        if unknown := sorted(overrides.keys() - {*names, *cls.off}):
            raise DistrijaxError(
                f"{cls.class_name}: unknown option {', '.join(unknown)}; supported: {', '.join(sorted(names))}"
            )
        defaults = config.get("_use_default_values")
        skipped = {"_use_default_values", *(defaults if isinstance(defaults, list | tuple) else ())}
        merged = {key: value for key, value in config.items() if key not in skipped} | overrides
        others = {key: value for key, value in merged.items() if key not in ALL_OPTIONS and not key.startswith("_")}
        log_ignored(cls.class_name, others)
        for name in merged.keys() & set(cls.off):
            cls._checked(name, merged[name])
        return cls(**{name: merged[name] for name in names if name in merged}, origin=merged)

    @property
    def config(self) -> dict[str, Any]:
        """The options as the contents of a `scheduler_config.json` that diffusers loads.

        As in diffusers, options of other classes are kept and defaults are marked, so that other schedulers can be
        built from it: SDXL's Euler config sets `clip_sample` to false for DDIM, whose default clips latents at 1.
        """
        values = {option.name: getattr(self, option.name) for option in self._options()}
        origin = self.origin or {}
        explicit = self._passed if self.origin is None else origin.keys()
        others = {name: value for name, value in origin.items() if name not in values and not name.startswith("_")}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        defaults = [o.name for o in self._options() if o.name not in explicit and values[o.name] == o.default]
        return {"_class_name": self.class_name, **others, **plain, "_use_default_values": defaults}

    @classmethod
    def _options(cls) -> list[dataclasses.Field[Any]]:
        """Return the fields that are options of diffusers' class."""
        return [field for field in dataclasses.fields(cls) if field.compare]

    @classmethod
    def _checked(cls, option: str, value: object) -> object:
        return (cls.rules.get(option) or OPTIONS[option])(f"{cls.class_name}: {option}", value)

    def _error(self, message: str) -> DistrijaxError:
        return DistrijaxError(f"{self.class_name}: {message}")

    # ---------------------------------------------------------------------------------------------------- one whole run

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | str | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
        start: int = 0,
    ) -> Schedule:
        """Return the steps of a run, from exactly one of the first three arguments.

        Args:
            num_inference_steps: number of steps of the whole run, placed by the scheduler's own rule.
            timesteps: custom training timesteps, descending, if the scheduler supports them; or "ays" for as many as
                `num_inference_steps` of those of Align Your Steps.
            sigmas: custom noise levels, descending, and the one to end at, if the scheduler supports them.
            eta: amount of noise that DDIM and TCD add at each step (0 none, 1 all); the others ignore it.
            start: number of steps to skip, to start from a picture. As in diffusers after `set_begin_index(start)`, a
                multistep solver begins without history, while its rules for the last steps count the whole run's.

        Returns:
            The steps from `start` on.

        Raises:
            DistrijaxError: not exactly one is given, or the scheduler cannot step through it.
        """
        if isinstance(timesteps, str):
            one_of(f"{self.class_name}: timesteps, if no numbers,", timesteps, (ays.NAME,))
            self._check_custom("timesteps")
            most = self.num_train_timesteps
            steps = whole_number(f"{self.class_name}: num_inference_steps", num_inference_steps, 1, most)
            timesteps, num_inference_steps = ays.ays_timesteps(steps, self.train_sigmas), None
        if sum(value is not None for value in (num_inference_steps, timesteps, sigmas)) != 1:
            raise self._error("give exactly one of num_inference_steps, timesteps and sigmas")
        about = f"{self.class_name}: "
        times = levels = None
        if timesteps is not None:
            self._check_custom("timesteps")
            last = self.num_train_timesteps - 1
            times = custom_timesteps(about + "timesteps", timesteps, last, self.whole_timesteps)
            steps = len(times)
        elif sigmas is not None:
            self._check_custom("sigmas")
            levels = custom_sigmas(about + "sigmas", sigmas)
            steps = len(levels) - 1
        else:
            steps = whole_number(about + "num_inference_steps", num_inference_steps, 1, self.num_train_timesteps)
        eta = finite_number(about + "eta", eta, None if self.largest_eta is None else 0, self.largest_eta)
        eta = 0.0 if self.largest_eta is None else eta
        start = whole_number(about + "start", start)
        run = self._build(Request(steps, times, levels, eta, start))
        # checked here, because a trailing run that drops timesteps (lambda_min_clipped) is shorter than `steps`
        whole_number(about + "start", start, most=run.steps - 1)
        return self._rounded(run, int(np.searchsorted(run.step_of, start)))

    def _build(self, request: Request) -> Schedule:
        """Return the tables of the whole run, in any precision. Steps before `request.start` are dropped later."""
        raise NotImplementedError

    def _check_custom(self, argument: str) -> None:
        if argument not in self.custom:
            raise self._error(f"custom {argument} are not supported; give num_inference_steps")
        for option in SIGMA_OPTIONS:
            if argument == "timesteps" and getattr(self, option, False):
                raise self._error(f"custom timesteps cannot be used with {option}; set it to false")

    def _rounded(self, run: Schedule, first: int) -> Schedule:
        """Return the rows from `first` on in float32, rejecting those that would fill the picture with NaN."""
        packed = {name: np.asarray(values[first:], np.float32) for name, values in run.coefficients.items()}
        timesteps = run.timesteps[first:]
        for index, timestep in enumerate(timesteps):
            bad = [name for name, values in packed.items() if not np.isfinite(values[index])]
            if bad:
                raise self._error(
                    f"step {run.step_of[first + index]} (timestep {timestep:g}) has no finite coefficients "
                    f"({', '.join(bad)}) with prediction_type {self.prediction_type!r} and these options: two steps "
                    "share a noise level, or one has no signal or no noise; use fewer steps, another spacing or "
                    "another final_sigmas_type"
                )
        signal, noise_level = (np.asarray(values[first:], np.float32) for values in (run.signal, run.noise_level))
        step_of = run.step_of[first:] - run.step_of[first]
        return Schedule(timesteps, packed, signal, noise_level, run.init_noise_sigma, run.draws[first:], step_of)

    @property
    def train_sigmas(self) -> np.ndarray:
        """Noise-to-signal ratio at each training timestep, float32 [T], ascending."""
        raise NotImplementedError

    @property
    def memory(self) -> int:
        """The number of earlier estimates that a step uses."""
        return 0

    def denoised_factors(self, schedule: Schedule) -> dict[str, np.ndarray]:
        """Return the factors by which each step's latents and prediction give the clean latents, float32 [S] each."""
        return denoised_factors(self.prediction_type, schedule.signal, schedule.noise_level)

    # -------------------------------------------------------------------------------------------------------- one step

    def scale_model_input(self, coefficients: Coefficients, sample: Array) -> Array:
        """Return the latents as the U-Net expects them at this step, in the shape and dtype of `sample`."""
        return sample / coefficients["input_norm"] if "input_norm" in coefficients else sample

    def init_state(self, sample: Array) -> State:
        """Return the state before the first step, zeros shaped like `sample`: what is held, and earlier estimates."""
        return tuple(jnp.zeros_like(sample) for _ in range(self.holds + self.memory))

    def step(
        self, coefficients: Coefficients, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        """Take one denoising step, or the part of one that belongs to an evaluation.

        Args:
            coefficients: the coefficients of this row, from `Schedule.coefficients`.
            state: from `init_state` or the previous row.
            prediction: the U-Net's output after guidance, shaped like `sample`, any float dtype.
            sample: latents, float32, any shape (all arithmetic is elementwise).
            noise: normal noise shaped like `sample`; may be None if the schedule never draws. Rows that do not draw
                multiply it by zero.

        Returns:
            Latents after this row, float32, and the new state.
        """
        sources: dict[str, Array | None] = {"sample": sample, "prediction": prediction, "noise": noise}

        def total(target: str) -> jax.Array:
            keys = ((f"{target}_from_{source}", array) for source, array in sources.items())
            return combine(*((coefficients[key], array) for key, array in keys if key in coefficients))

        held, past = state[: self.holds], state[self.holds :]
        estimates: State = ()
        if "estimate_0_from_prediction" in coefficients:
            estimate = total("estimate_0")
            if getattr(self, "clip_sample", False):
                limit = getattr(self, "clip_sample_range", 1.0)
                estimate = jnp.clip(estimate, -limit, limit)
            estimates = (estimate, *past)
        if self.holds:
            sources["held"] = held[0]
        sources |= {f"estimate_{age}": array for age, array in enumerate(estimates)}
        keeps = (total("held"),) if self.holds else ()
        return total("next"), (*keeps, *estimates[: self.memory])
