"""DDIM (Song et al., arXiv 2010.02502)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from distrijax.schedulers import tables
from distrijax.schedulers.common import Array, Row, Schedule, Scheduler, State, combine, to_clean, to_noise


@dataclass(frozen=True, kw_only=True)
class DDIMScheduler(Scheduler):
    """diffusers' `DDIMScheduler`. `eta` above 0 adds noise at every step, the last one included."""

    timestep_spacing: str = "leading"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True

    class_name = "DDIMScheduler"

    def schedule(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float = 0.0,
    ) -> Schedule:
        steps, _, _ = self._choose(num_inference_steps, timesteps, sigmas)
        eta = self._eta(eta)
        train = self.num_train_timesteps
        spaced = tables.spaced_timesteps(self.timestep_spacing, steps, train, self.steps_offset).round()
        now = self._table_index(spaced)
        after = now - train // steps
        alphas = self.alphas_cumprod
        final = np.float32(1) if self.set_alpha_to_one else alphas[0]
        power = alphas[now]
        power_after = np.where(after >= 0, alphas[np.maximum(after, 0)], final)

        # float32 like the original: these differences cancel, and the rounding is part of its result
        with np.errstate(divide="ignore", invalid="ignore"):
            one = np.float32(1)
            variance = ((one - power_after) / (one - power)) * (one - power / power_after)
            spread = np.float32(eta) * np.sqrt(variance)
            left = one - power_after - spread**2
            # zero at eta 1 from zero SNR; the original returns NaN there if it rounds to less
            toward_noise = np.sqrt(np.maximum(left, 0) if eta <= 1 else left)

        alpha, sigma = np.sqrt(power), np.sqrt(one - power)
        clean_sample, clean_prediction = to_clean(self.prediction_type, alpha, sigma)
        noise_sample, noise_prediction = to_noise(self.prediction_type, alpha, sigma)
        rows = {
            "clean_sample": clean_sample,
            "clean_prediction": clean_prediction,
            "noise_sample": noise_sample,
            "noise_prediction": noise_prediction,
            "next_clean": np.sqrt(power_after),
            "next_noise": toward_noise,
            "fresh_noise": spread,
        }
        return self._finished(now.astype(np.int32), rows, 1.0, eta > 0)

    def step(
        self, row: Row, state: State, prediction: Array, sample: Array, noise: Array | None
    ) -> tuple[Array, State]:
        clean = combine((row["clean_sample"], sample), (row["clean_prediction"], prediction))
        if self.clip_sample:
            clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
        direction = combine((row["noise_sample"], sample), (row["noise_prediction"], prediction))
        return combine((row["next_clean"], clean), (row["next_noise"], direction), (row["fresh_noise"], noise)), state
