"""Answers that predict: pieces that go on as they did, and the share of a slab's change that is the picture's."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from parallel_helpers import small_pipeline
from test_slabs import normal, on_each, slabs

from distrijax import Parallel
from distrijax.models.unet import INPUT_LAYER
from distrijax.nn.exchange import group_moments
from distrijax.parallel.answers.moments import (
    CorrectedMoments,
    History,
    MomentsAnswer,
    PredictedMoments,
    StaleMoments,
)
from distrijax.parallel.exchange import SlabExchange
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import Carried, MeanVariance, Moments, Persistence
from distrijax.parallel.policies import FULL_SYNC, MODES
from distrijax.parallel.slab import Slab
from distrijax.parallel.transport import MESH

LAYOUT = SlabLayout(12, 3)
GROUPS = 2


def run(pictures: list[np.ndarray], persistence: list[float], mode: str = "predicted", synchronous: int = 2) -> Any:
    """The answers of every device in the last of these steps, of which the first ones are synchronous."""

    def device(*slabs: Any) -> Any:
        carried: Carried | None = None
        for step, x in enumerate(slabs):
            following = persistence[min(step + 1, len(persistence) - 1)]
            policy = FULL_SYNC if step < synchronous else MODES[mode]
            exchange = SlabExchange(
                policy,
                MODES[mode],
                0,
                LAYOUT,
                MESH,
                carried,
                Persistence(persistence[max(step - 1, 0)], persistence[step], following),
            )
            answers = (
                exchange.halo("unet.up_blocks.0.conv", x, 1, 1),
                exchange.halo("unet.down_blocks.0.conv", x, 1, 1),
                exchange.moments("norm", x, GROUPS),
                exchange.attention("attn", x.transpose(1, 2, 0, 3), lambda x: (x, x, x), 1),
            )
            carried = exchange.carry()
        return answers

    return on_each(device, *(slabs(LAYOUT, x) for x in pictures))


def halos(x: np.ndarray) -> np.ndarray:
    """The rows around each of three slabs: [N, 2, B, W, C]."""
    around = np.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    return np.stack([[around[:, 4 * i], around[:, 4 * i + 5]] for i in range(3)])


def test_halos_are_where_they_were_going() -> None:
    first, second, third = (normal(1, 12, 4, 4, seed=seed) for seed in range(3))
    _, stale, *_ = run([first, second, third], [0, 0.25, 0.5])
    got = np.stack([stale[:, :, 0], stale[:, :, -1]], 1)
    np.testing.assert_allclose(got, halos(second + 0.25 * (second - first)), atol=1e-6)


def test_some_halos_may_be_fresh() -> None:
    pictures = [normal(1, 12, 4, 4, seed=seed) for seed in range(4)]
    for mode, fresh in (("predicted", (False, False)), ("halo_sync_up", (True, False)), ("halo_sync", (True, True))):
        expected = [pictures[3] if waits else pictures[2] + 0.5 * (pictures[2] - pictures[1]) for waits in fresh]
        up, down, *_ = run(pictures, [0, 0.25, 0.5, 0.5], mode)
        for rows, source in zip((up, down), expected, strict=True):
            np.testing.assert_allclose(np.stack([rows[:, :, 0], rows[:, :, -1]], 1), halos(source), atol=1e-6)


def test_a_change_that_goes_on_is_predicted_exactly() -> None:
    """Of a picture that changes by the same amount every step, a persistence of 1 makes displaced steps exact."""
    start, change = normal(1, 12, 4, 4), 0.1 * normal(1, 12, 4, 4, seed=1)
    pictures = [start + step * change for step in range(5)]
    persistent, exact = run(pictures, [0, 1, 1, 1, 1]), run(pictures, [0] * 5, "full_sync")
    for got, expected in zip((*persistent[:2], persistent[3]), (*exact[:2], exact[3]), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def merged(answer: MomentsAnswer, own: Any, last: Any, before: Any, persistence: float = 0.0) -> Any:
    """The picture's moments that each of three devices answers; moments are [N, B, G] each."""

    def of_all(both: Any) -> Moments:
        return Moments(jnp.stack(both)[None], (("norm", 4),))

    def device(mine: MeanVariance, previous: MeanVariance) -> MeanVariance:
        slab = Slab(LAYOUT, MESH)
        known = Moments.stack({"norm": previous}, {"norm": 4})
        history = answer.prepare(History(known, of_all(last), of_all(before), persistence), slab)
        return answer.merge(mine, "norm", history, 4, slab)

    return on_each(device, tuple(own), tuple(last))


def moments(*parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and variances of three slabs, [3, 1, G] each, of pictures that change by these parts."""
    mean, deviation = sum(parts[1:], start=parts[0]), 1 + 0.1 * normal(3, 1, GROUPS, seed=9)
    return np.float32(mean), np.float32(np.square(deviation))


def test_a_change_of_all_slabs_is_the_picture_s() -> None:
    """Where they all change alike, a device's own change is that of the picture: as in `corrected_async_gn`."""
    start, change, now = normal(3, 1, GROUPS), np.full((3, 1, GROUPS), 0.2), 0.3 * normal(3, 1, GROUPS, seed=2)
    before, last, own = moments(start), moments(start, change), moments(start, change, now)
    got, expected = (merged(answer, own, last, before)[0] for answer in (PredictedMoments(), CorrectedMoments()))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert np.abs(got - merged(StaleMoments(), own, last, before)[0]).max() > 0.05


def test_a_change_of_one_slab_is_its_own() -> None:
    """Where only one slab changed, it counts by its rows, which is what putting it in its place does: `stale_gn`."""
    start, now = normal(3, 1, GROUPS), 0.3 * normal(3, 1, GROUPS, seed=2)
    change = np.zeros((3, 1, GROUPS))
    change[1] = 0.2
    before, last, own = moments(start), moments(start, change), moments(start, change, now)
    got, expected = (merged(answer, own, last, before) for answer in (PredictedMoments(), StaleMoments()))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    assert np.abs(got[0] - merged(CorrectedMoments(), own, last, before)[0]).max() > 0.05


def test_changes_that_cancel_are_nobody_s() -> None:
    """Where the changes of slabs add up to nothing, a device's own says nothing about the picture."""
    start, change = normal(3, 1, GROUPS), np.array([0.2, -0.2, 0.0])[:, None, None] * np.ones((1, 1, GROUPS))
    before, last, own = moments(start), moments(start, change), moments(start, change, normal(3, 1, GROUPS, seed=2))
    mean, _ = merged(PredictedMoments(), own, last, before)
    np.testing.assert_allclose(mean, np.broadcast_to(last[0].mean(0), mean.shape), atol=1e-6)


def test_moments_go_on_half_as_much() -> None:
    """One slab changed by 0.3, the picture by 0.1: devices that saw no change expect a quarter of that again."""
    start, change = normal(3, 1, GROUPS), np.zeros((3, 1, GROUPS))
    change[1] = 0.3
    before, last = moments(start), moments(start, change)
    mean, _ = merged(PredictedMoments(), last, last, before, 0.5)
    expected = np.broadcast_to(last[0].mean(0) + 0.025, mean[::2].shape)
    np.testing.assert_allclose(mean[::2], expected, atol=1e-6)


def test_synchronous_steps_hand_on_the_moments_of_two() -> None:
    pictures = [normal(1, 12, 4, 4, seed=seed) for seed in range(3)]
    before, last, own = (
        np.stack([group_moments(jnp.asarray(slab), GROUPS) for slab in slabs(LAYOUT, x)], 1) for x in pictures
    )
    *_, found, _ = run(pictures, [0, 0.25, 0.5])
    for got, expected in zip(found, merged(PredictedMoments(), own, last, before, 0.25), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_known_in_the_second_step() -> None:
    """Zeros stand for the moments before the first step: a change from them would be the moments themselves."""
    before = (np.zeros((3, 1, GROUPS), np.float32),) * 2
    last, own = moments(normal(3, 1, GROUPS)), moments(normal(3, 1, GROUPS, seed=1))
    got, expected = (merged(answer, own, last, before) for answer in (PredictedMoments(), CorrectedMoments()))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-6)


def test_one_synchronous_step_is_no_change_to_go_on() -> None:
    """After it alone, the picture's moments are those of the last step and this device's change, of any persistence."""
    pictures = [normal(1, 12, 4, 4, seed=seed) for seed in range(2)]
    seen = []
    for share in (0.0, 0.5):
        _, _, (mean, _), _ = run(pictures, [0.0, share], synchronous=1)
        seen.append(mean)
    np.testing.assert_array_equal(*seen)


def test_no_variance_is_negative() -> None:
    start = normal(3, 1, GROUPS)
    before, last, own = moments(start), moments(start, np.full(start.shape, 3.0)), moments(start)
    mean, variance = merged(PredictedMoments(), (own[0], own[1] * 1e-3), last, before)
    assert np.isfinite(mean).all()
    assert (variance > 0).all()


@pytest.mark.parametrize("mode", ["predicted", "halo_sync_up"])
def test_pictures_do_not_depend_on_dispatches(mode: str) -> None:
    """With a callback every step is dispatched alone: synchronous steps must still hand on what they remember.

    Without one, the last three of the eight synchronous steps are one dispatch.
    """
    pipe, calls = small_pipeline(), []
    pipe.parallel = Parallel(patch=2, mode=mode, warmup_steps=7, emulate=True)
    options: dict[str, Any] = {"num_inference_steps": 12, "height": 128, "width": 128, "output_type": "latent"}
    at_once = pipe("a red circle", seed=3, **options).images
    one_by_one = pipe("a red circle", seed=3, callback_on_step_end=lambda *args: calls.append(args), **options).images
    assert len(calls) == 12
    np.testing.assert_array_equal(at_once, one_by_one)


def test_the_first_layer_is_fresh_in_every_mode_that_predicts() -> None:
    assert all(policy.waits_for_halo(INPUT_LAYER) for policy in MODES.values() if policy.predicts)
