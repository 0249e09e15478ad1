"""Latent consistency models (Luo et al., arXiv 2310.04378): few steps, each to the clean image and back up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from distrijax.schedulers.common import Array, Row, Schedule, Scheduler, State, combine, to_clean

_SIGMA_DATA = 0.5  # standard deviation of the data in the boundary condition; diffusers has no option for it


@dataclass(frozen=True, kw_only=True)
class DistilledScheduler(Scheduler):
    """What LCM and TCD share: the options, and timesteps taken from the schedule that the model was distilled on."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    timestep_spacing: str = "leading"
    original_inference_steps: int = 50

    def _distilled_timesteps(
        self,
        num_inference_steps: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
    ) -> np.ndarray:
        """Custom timesteps, or evenly chosen ones of the distillation schedule -> int64 [S], falling."""
        steps, chosen, _ = self._choose(num_inference_steps, timesteps, sigmas, takes_timesteps=True)
        if chosen is not None:
            return self._whole(chosen)
        original, train = self.original_inference_steps, self.num_train_timesteps
        if not 1 <= original <= train:
            raise self._error(f"original_inference_steps must be in 1..{train}, got {original}")
        if steps > original:
            raise self._error(
                f"num_inference_steps {steps} is more than original_inference_steps {original}, the schedule that the "
                "model was distilled on; use fewer steps"
            )
        falling = (np.arange(1, original + 1) * (train // original) - 1)[::-1]
        return falling[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(np.int64)]


@dataclass(frozen=True, kw_only=True)
class LCMScheduler(DistilledScheduler):
    """diffusers' `LCMScheduler`. Draws noise at every step but the last."""

    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_scaling: float = 10.0

    class_name = "LCMScheduler"

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
    ) -> Schedule:
        now = self._distilled_timesteps(num_inference_steps, timesteps, sigmas)
        power = self.alphas_cumprod[now]
        power_after = np.append(power[1:], np.float32(1))  # after the last step the clean image stays as it is
        scaled = now * self.timestep_scaling
        norm = scaled**2 + _SIGMA_DATA**2
        clean_sample, clean_prediction = to_clean(self.prediction_type, np.sqrt(power), np.sqrt(1 - power))
        rows = {
            "clean_sample": clean_sample,
            "clean_prediction": clean_prediction,
            "skip": _SIGMA_DATA**2 / norm,
            "out": scaled / np.sqrt(norm),
            "next_clean": np.sqrt(power_after),
            "fresh_noise": np.sqrt(1 - power_after),
        }
        draws = np.arange(len(now)) < len(now) - 1
        return self._finished(now.astype(np.int32), rows, 1.0, draws)

    def step(
        self, row: Row, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        clean = combine((row["clean_sample"], sample), (row["clean_prediction"], prediction))
        if self.clip_sample:
            clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
        clean = combine((row["out"], clean), (row["skip"], sample))
        return combine((row["next_clean"], clean), (row["fresh_noise"], noise)), state
