"""What the schedulers share: the base class with its checked options, and the `Schedule` that a scan runs over.

A scheduler is a frozen, hashable set of options (a static argument of a jitted function). `schedule()` computes on the
host everything that depends on the step and not on the picture, as rows of float32 scalars; `step()` is then a short
elementwise combination of arrays with one row, the same program for every step, and can run inside `jax.lax.scan`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from distrijax.errors import DistrijaxError
from distrijax.schedulers import tables

Array = jax.Array | np.ndarray
Row = Mapping[str, Any]
State = Any

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")
FINAL_SIGMAS_TYPES = ("zero", "sigma_min")
SIGMA_OPTIONS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
"""Options that place the noise levels by a formula instead of at the spaced timesteps."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """The steps of one denoising run, computed on the host.

    Attributes:
        timesteps: what the U-Net is told at each step, [S], float32 or int32 as the scheduler has them.
        rows: coefficients of each step, name -> float32 [S]: `jax.lax.scan` over them gives `step` its row.
        init_noise_sigma: standard deviation of the latents that the first step expects.
        draws: which steps use up one noise tensor, bool [S]; noise is drawn in this order, after the initial latents.
    """

    timesteps: np.ndarray
    rows: dict[str, np.ndarray]
    init_noise_sigma: float
    draws: np.ndarray

    def __len__(self) -> int:
        return len(self.timesteps)

    def __getitem__(self, part: slice) -> Schedule:
        """Some of the steps, for example `schedule[:n]` to stop early; the coefficients stay those of the whole run."""
        rows = {name: values[part] for name, values in self.rows.items()}
        return Schedule(self.timesteps[part], rows, self.init_noise_sigma, self.draws[part])


@dataclass(frozen=True, kw_only=True)
class Scheduler:
    """Base class. Fields are diffusers' option names; a subclass changes defaults and adds fields.

    Raises:
        DistrijaxError: an option has the wrong type or an unsupported value.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    origin: Mapping[str, Any] | None = dataclasses.field(default=None, compare=False, repr=False)
    """The config it was made from: `to_config` hands on what of it belongs to other classes."""

    class_name: ClassVar[str]
    """The name in a `scheduler_config.json`."""
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Allowed values of the options that name something, beyond those every scheduler has."""
    aliases: ClassVar[dict[str, dict[str, str]]] = {}
    """Values that diffusers replaces silently when a config made for another class is read."""
    neutral: ClassVar[dict[str, Any]] = {"thresholding": False}
    """Options of diffusers' class that are supported at this value only. Thresholding takes a quantile over the whole
    picture, so it is not elementwise, and diffusers calls it unsuitable for latents."""

    def __post_init__(self) -> None:
        for field in self.options():
            value = getattr(self, field.name)
            value = self.aliases.get(field.name, {}).get(value, value) if isinstance(value, str) else value
            object.__setattr__(self, field.name, self._checked(field.name, value, field.default))
        if self.num_train_timesteps < 2:
            raise self._error(f"num_train_timesteps must be at least 2, got {self.num_train_timesteps}")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise self._error(
                f"trained_betas has {len(self.trained_betas)} values, num_train_timesteps is {self.num_train_timesteps}"
            )
        placing = [option for option in SIGMA_OPTIONS if getattr(self, option, False)]
        if len(placing) > 1:
            raise self._error(f"{' and '.join(placing)} exclude each other; set one of them")

    def _checked(self, name: str, value: Any, default: Any) -> Any:
        allowed = {
            "beta_schedule": tables.BETA_SCHEDULES,
            "prediction_type": PREDICTION_TYPES,
            "timestep_spacing": TIMESTEP_SPACINGS,
            "final_sigmas_type": FINAL_SIGMAS_TYPES,
            **self.choices,
        }.get(name)
        if allowed is not None:
            if value not in allowed:
                raise self._error(f"{name} {value!r} is not supported; supported: {', '.join(allowed)}")
            return value
        if isinstance(default, bool):
            if value is None:
                return default
            if not isinstance(value, (bool, np.bool_)):
                raise self._error(f"{name} must be true or false, got {value!r}")
            return bool(value)
        if isinstance(default, int):
            if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
                raise self._error(f"{name} must be a whole number, got {value!r}")
            return int(value)
        if name == "trained_betas" or isinstance(default, tuple):
            if value is None:
                return default
            array = np.asarray(value)
            if array.ndim != 1 or (array.size and array.dtype.kind not in ("iu" if default == () else "iuf")):
                raise self._error(f"{name} must be a list of numbers, got {value!r}")
            return tuple(array.tolist())
        if value is None and default is None:
            return None
        if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or math.isnan(value):
            raise self._error(f"{name} must be a number, got {value!r}")
        return float(value)

    def _error(self, message: str) -> DistrijaxError:
        return DistrijaxError(f"{self.class_name}: {message}")

    @classmethod
    def options(cls) -> list[dataclasses.Field[Any]]:
        """Those of diffusers' class."""
        return [field for field in dataclasses.fields(cls) if field.name != "origin"]

    def to_config(self) -> dict[str, Any]:
        """The options as the content of a `scheduler_config.json` that diffusers loads.

        As in diffusers, options of other classes are kept and defaults are marked, for whoever makes another scheduler
        of it: SDXL's Euler config says `clip_sample` false for DDIM, whose default cuts latents off at 1.
        """
        values = {field.name: getattr(self, field.name) for field in self.options()}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        named = {"_class_name": self.class_name}
        if self.origin is None:
            return named | plain
        given = set(self.origin) - set(self.origin.get("_use_default_values", ()))
        defaults = [f.name for f in self.options() if f.name not in given and values[f.name] == f.default]
        kept = [name for name in self.origin if name in given and name not in values and not name.startswith("_")]
        others = {name: self.origin[name] for name in kept}
        return named | others | plain | {"_use_default_values": defaults}

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """Signal power left at each training timestep, float32 [T]."""
        return tables.alphas_cumprod(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            self.trained_betas,
            self.rescale_betas_zero_snr,
        )

    @cached_property
    def train_sigmas(self) -> np.ndarray:
        """Noise-to-signal ratio at each training timestep, float32 [T], rising.

        With zero terminal SNR the last one would be infinite; like diffusers it is kept at a signal power of 2**-24.
        """
        alphas = self.alphas_cumprod.copy()
        if self.rescale_betas_zero_snr:
            alphas[-1] = 2**-24
        return tables.sigmas_of(alphas)

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
    ) -> Schedule:
        """The steps of one run. Give exactly one of the first three.

        Args:
            num_inference_steps: how many steps, placed by the scheduler's own rule.
            timesteps: the training timesteps to visit, falling, where the scheduler allows a choice.
            sigmas: the noise levels to visit, falling, and the one to end at, where the scheduler allows a choice.
            eta: how much noise DDIM and TCD add at each step (0 none, 1 all); the others ignore it, as in diffusers.

        Raises:
            DistrijaxError: none or more than one given, or a value that the scheduler cannot step through.
        """
        raise NotImplementedError

    def scale_model_input(self, row: Row, sample: Array) -> Array:
        """Latents as the U-Net wants them at this step. Same shape and dtype as `sample`."""
        return sample

    def init_state(self, sample: Array) -> State:
        """What the scheduler remembers between steps: a pytree of arrays shaped like `sample`, `()` if nothing."""
        return ()

    def step(
        self, row: Row, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        """One denoising step.

        Args:
            row: this step's coefficients, from `Schedule.rows`.
            state: from `init_state` or the step before.
            prediction: the U-Net's output after guidance, shaped like `sample`, any float dtype.
            sample: latents, float32, any shape (all arithmetic is elementwise).
            noise: normal noise shaped like `sample`; may be None if the schedule never draws. Steps that do not draw
                multiply it by zero.

        Returns:
            Latents of the next noise level, float32, and the new state.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------------------------------ for subclasses

    def _choose(
        self,
        num_inference_steps: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        *,
        takes_timesteps: bool = False,
        takes_sigmas: bool = False,
    ) -> tuple[int, np.ndarray | None, np.ndarray | None]:
        """Check the arguments of `schedule` -> (number of steps, float64 timesteps or None, float64 sigmas or None)."""
        if sum(value is not None for value in (num_inference_steps, timesteps, sigmas)) != 1:
            raise self._error("give exactly one of num_inference_steps, timesteps and sigmas")
        if timesteps is not None:
            if not takes_timesteps:
                raise self._error("custom timesteps are not supported; give num_inference_steps")
            for option in SIGMA_OPTIONS:
                if getattr(self, option, False):
                    raise self._error(f"custom timesteps cannot be used with {option}; set it to false")
            values = self._falling("timesteps", timesteps, 1)
            if values[-1] < 0 or values[0] > self.num_train_timesteps - 1:
                raise self._error(f"timesteps must lie in 0..{self.num_train_timesteps - 1}, got {list(timesteps)}")
            return len(values), values, None
        if sigmas is not None:
            if not takes_sigmas:
                raise self._error("custom sigmas are not supported; give num_inference_steps")
            values = self._falling("sigmas", sigmas, 2)
            if values[-1] < 0:
                raise self._error(f"sigmas must not be negative, got {list(sigmas)}")
            return len(values) - 1, None, values
        steps = num_inference_steps
        if not isinstance(steps, (int, np.integer)) or isinstance(steps, bool):
            raise self._error(f"num_inference_steps must be a whole number, got {steps!r}")
        if not 1 <= steps <= self.num_train_timesteps:
            raise self._error(f"num_inference_steps must be in 1..{self.num_train_timesteps}, got {steps}")
        return int(steps), None, None

    @property
    def _uses_formula(self) -> bool:
        return any(getattr(self, option, False) for option in SIGMA_OPTIONS)

    def _formula_sigmas(self, low: float, high: float, steps: int) -> np.ndarray:
        """Noise levels from `high` to `low` by the formula that the options ask for -> float64 [steps]."""
        if getattr(self, "use_karras_sigmas", False):
            return tables.karras_sigmas(low, high, steps)
        if getattr(self, "use_beta_sigmas", False):
            return tables.beta_sigmas(low, high, steps)
        return tables.exponential_sigmas(low, high, steps)

    def _whole(self, timesteps: np.ndarray) -> np.ndarray:
        """Custom timesteps of a scheduler that looks them up in its tables -> int64 [S]."""
        if np.any(timesteps != np.round(timesteps)):
            raise self._error(f"timesteps must be whole numbers, got {timesteps.tolist()}")
        return timesteps.astype(np.int64)

    def _falling(self, name: str, values: Sequence[float], least: int) -> np.ndarray:
        array = np.asarray(values)
        if array.ndim != 1 or len(array) < least or array.dtype.kind not in "iuf":
            raise self._error(f"{name} must be a list of at least {least} numbers, got {values!r}")
        array = array.astype(np.float64)
        if not np.all(np.isfinite(array)) or np.any(np.diff(array) >= 0):
            raise self._error(f"{name} must be finite and fall from each value to the next, got {list(values)}")
        return array

    def _eta(self, eta: float, most: float = math.inf) -> float:
        if not isinstance(eta, (int, float, np.number)) or not 0 <= eta <= most or not math.isfinite(eta):
            raise self._error(f"eta must be a number from 0{'' if math.isinf(most) else f' to {most:g}'}, got {eta!r}")
        return float(eta)

    def _table_index(self, timesteps: np.ndarray) -> np.ndarray:
        """Timesteps as indices of the training tables -> int64 [S]."""
        index = timesteps.astype(np.int64)
        if index.max() >= self.num_train_timesteps or index.min() < 0:
            raise self._error(
                f"timesteps {index.min()}..{index.max()} leave the {self.num_train_timesteps} training timesteps "
                f"(timestep_spacing {self.timestep_spacing!r}, steps_offset {self.steps_offset}); use fewer steps"
            )
        return index

    def _finished(
        self, timesteps: np.ndarray, rows: dict[str, np.ndarray], init_noise_sigma: float, draws: np.ndarray | bool
    ) -> Schedule:
        """Pack float64 coefficients into a Schedule, refusing those that would fill the picture with NaN."""
        packed = {name: np.asarray(values, np.float32) for name, values in rows.items()}
        for index, timestep in enumerate(timesteps):
            bad = [name for name, values in packed.items() if not np.isfinite(values[index])]
            if bad:
                raise self._error(
                    f"step {index} (timestep {timestep:g}) has no finite coefficients ({', '.join(bad)}) with "
                    f"prediction_type {self.prediction_type!r} and these options: two steps share a noise level, or "
                    "one has no signal or no noise; use fewer steps, another spacing or another final_sigmas_type"
                )
        return Schedule(timesteps, packed, float(init_noise_sigma), np.broadcast_to(draws, len(timesteps)).copy())


def to_clean(prediction_type: str, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (of the sample, of the prediction) whose sum is the clean image x0, for x = alpha x0 + sigma noise.

    v is alpha noise - sigma x0 (arXiv 2202.00512, appendix D). float64 [S] each.
    """
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if prediction_type == "epsilon":
            return 1 / alpha, -sigma / alpha
        if prediction_type == "v_prediction":
            return alpha, -sigma
        return np.zeros_like(alpha), np.ones_like(alpha)


def to_noise(prediction_type: str, alpha: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors (of the sample, of the prediction) whose sum is the noise, like `to_clean`. float64 [S] each."""
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        if prediction_type == "epsilon":
            return np.zeros_like(alpha), np.ones_like(alpha)
        if prediction_type == "v_prediction":
            return sigma, alpha
        return 1 / sigma, -alpha / sigma


def combine(*terms: tuple[Any, Array | None]) -> jax.Array:
    """Sum of coefficient * array in float32, from left to right; an array that is None is left out."""
    products = [coefficient * jnp.asarray(array, jnp.float32) for coefficient, array in terms if array is not None]
    total = products[0]
    for product in products[1:]:
        total = total + product
    return total
