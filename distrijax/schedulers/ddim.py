"""DDIM (Song et al., arXiv 2010.02502)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.base import Request, Scheduler
from distrijax.schedulers.predictions import combine, to_clean, to_noise
from distrijax.schedulers.schedule import Array, Coefficients, Schedule, State


@dataclass(frozen=True, kw_only=True)
class DDIMScheduler(Scheduler):
    """DDIM, step for step as in diffusers; `eta` above 0 adds noise at every step, including the last."""

    timestep_spacing: str = "leading"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True

    class_name = "DDIMScheduler"
    off: ClassVar = ("thresholding",)
    largest_eta = math.inf

    def _build(self, request: Request) -> Schedule:
        now = self._timesteps(request.steps)
        after = now - self.num_train_timesteps // request.steps
        alphas = self.alphas_cumprod
        final = np.float32(1) if self.set_alpha_to_one else alphas[0]
        power = alphas[now]
        power_after = np.where(after >= 0, alphas[np.maximum(after, 0)], final)

        # float32 as in diffusers: these differences cancel, so its results depend on their rounding
        one, eta = np.float32(1), np.float32(request.eta)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = ((one - power_after) / (one - power)) * (one - power / power_after)
            spread = eta * np.sqrt(variance)
            rest = one - power_after - spread**2
            # zero at eta 1 from zero SNR; diffusers returns NaN where it rounds to less
            toward_noise = np.sqrt(np.maximum(rest, 0) if eta <= 1 else rest)

        alpha, sigma = np.sqrt(power), np.sqrt(one - power)
        clean_sample, clean_prediction = to_clean(self.prediction_type, alpha, sigma)
        noise_sample, noise_prediction = to_noise(self.prediction_type, alpha, sigma)
        coefficients = {
            "clean_sample": clean_sample,
            "clean_prediction": clean_prediction,
            "noise_sample": noise_sample,
            "noise_prediction": noise_prediction,
            "next_clean": np.sqrt(power_after),
            "next_noise": toward_noise,
            "fresh_noise": spread,
        }
        return Schedule(now.astype(np.int32), coefficients, alpha, sigma, 1.0, np.full(len(now), eta > 0))

    def _timesteps(self, steps: int) -> np.ndarray:
        """Return the timesteps of a run as indices of the training tables, int64 [steps]."""
        train = self.num_train_timesteps
        spaced = tables.spaced_timesteps(self.timestep_spacing, steps, train, self.steps_offset)
        index = spaced.round().astype(np.int64)
        if index.max() >= train or index.min() < 0:
            raise self._error(
                f"timesteps {index.min()}..{index.max()} leave the {train} training timesteps (timestep_spacing "
                f"{self.timestep_spacing!r}, steps_offset {self.steps_offset}); use fewer steps"
            )
        return index

    def step(
        self, coefficients: Coefficients, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        c = coefficients
        clean = combine((c["clean_sample"], sample), (c["clean_prediction"], prediction))
        if self.clip_sample:
            clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
        direction = combine((c["noise_sample"], sample), (c["noise_prediction"], prediction))
        return combine((c["next_clean"], clean), (c["next_noise"], direction), (c["fresh_noise"], noise)), state
