"""Schedulers whose noise levels are those of a training run: the tables of betas, and steps placed among them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.base import Scheduler
from distrijax.schedulers.options import SIGMA_OPTIONS


@dataclass(frozen=True, kw_only=True)
class TrainedScheduler(Scheduler):
    """The options that describe the noise of a training run.

    Classes with zero terminal SNR have an option `rescale_betas_zero_snr`, those that can place noise levels by a
    formula one or more of `SIGMA_OPTIONS`.
    """

    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise self._error(
                f"trained_betas has {len(self.trained_betas)} values, num_train_timesteps is {self.num_train_timesteps}"
            )

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """Signal power left at each training timestep, float32 [T]."""
        return tables.alphas_cumprod(
            self.beta_schedule,
            self.beta_start,
            self.beta_end,
            self.num_train_timesteps,
            self.trained_betas,
            self._zero_snr,
        )

    @cached_property
    def train_sigmas(self) -> np.ndarray:
        """Noise-to-signal ratio at each training timestep, float32 [T], ascending.

        With zero terminal SNR, the last one would be infinite; as in diffusers, its signal power is set to 2**-24.
        """
        alphas = self.alphas_cumprod.copy()
        if self._zero_snr:
            alphas[-1] = 2**-24
        return tables.sigmas_of(alphas)

    @property
    def _zero_snr(self) -> bool:
        return getattr(self, "rescale_betas_zero_snr", False)

    @property
    def _uses_formula(self) -> bool:
        return any(getattr(self, option, False) for option in SIGMA_OPTIONS)

    def _formula_sigmas(self, low: float, high: float, steps: int) -> np.ndarray:
        """Return noise levels from `high` to `low` by the formula that the options select, float64 [steps]."""
        if getattr(self, "use_karras_sigmas", False):
            return tables.karras_sigmas(low, high, steps)
        if getattr(self, "use_beta_sigmas", False):
            return tables.beta_sigmas(low, high, steps)
        return tables.exponential_sigmas(low, high, steps)


@dataclass(frozen=True, kw_only=True)
class SpacedScheduler(TrainedScheduler):
    """The options of schedulers that place their steps among the training timesteps by one of three rules."""

    timestep_spacing: str = "linspace"
    steps_offset: int = 0

    def _training_steps(self, steps: int) -> np.ndarray:
        """Return the timesteps of a run as indices of the training tables, int64 [steps], descending."""
        train = self.num_train_timesteps
        spaced = tables.spaced_timesteps(self.timestep_spacing, steps, train, self.steps_offset)
        index = spaced.round().astype(np.int64)
        if index.max() >= train or index.min() < 0:
            raise self._error(
                f"timesteps {index.min()}..{index.max()} leave the {train} training timesteps (timestep_spacing "
                f"{self.timestep_spacing!r}, steps_offset {self.steps_offset}); use fewer steps"
            )
        return index
