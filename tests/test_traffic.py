"""What devices send and hold is counted from the program that runs, and comes out as by hand."""

import dataclasses
import json
from functools import cache
from importlib import resources
from typing import Any

import jax.numpy as jnp
import pytest

from distrijax import DistrijaxError, Parallel, StableDiffusionXLPipeline, UNetConfig, cli, scheduler_from_config
from distrijax.checkpoint import find
from distrijax.parallel import policies
from distrijax.parallel.answers.attention import StaleAttention
from distrijax.parallel.answers.halos import FreshHalos
from distrijax.parallel.answers.moments import StaleMoments
from distrijax.parallel.policies import Policy
from distrijax.tools.traffic import Traffic, Volume, count_traffic

SMALL = UNetConfig.from_json(
    {
        "sample_size": 16,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "cross_attention_dim": 8,
        "projection_class_embeddings_input_dim": 32,
        "use_linear_projection": True,
        "norm_num_groups": 4,
    }
)
# Latents of 16 rows and 12 columns. By hand, for one picture and guidance branch:
WIDE = (8 + 8 + 8) + 16 + (24 + 8 + 16 + 8) + 8  # channels into the 3x3 convolutions at 12 columns, but for the first
NARROW = (8 + 16) + (16 + 16 + 16 + 16) + (32 + 16 + 24 + 16)  # and at 6
CONVS, NORMS, ATTENTIONS = 3 + 2 + 4 + 5 + 4 + 1, 2 * 8 + 4 + 1, 4
EDGE = 12 * WIDE + 6 * NARROW  # elements of one row of every convolution's input
FIRST = 12 * (8 + 8 + 8) + 6 * (8 + 16) + 6 * 16  # of the first six: two residual blocks, one of them after halving
MOMENTS = NORMS * 2 * 4  # mean and variance of 4 groups
TOKENS = ATTENTIONS * 2 * (8 * 6) * 16  # keys and values of the whole picture at half its size, 16 channels


@cache
def small(dtype: str = "bfloat16", pictures: int = 1, guided: bool = True, **choices: Any) -> Traffic:
    parallel = Parallel(**({"emulate": True, "mode": "corrected_async_gn"} | choices))
    return count_traffic(SMALL, parallel, jnp.dtype(dtype), height=16, width=12, guided=guided, pictures=pictures)


@pytest.mark.parametrize(
    ("dtype", "cfg", "patch"), [("bfloat16", 1, 2), ("bfloat16", 1, 4), ("float32", 2, 4)], ids=str
)
def test_by_hand(dtype: str, cfg: int, patch: int) -> None:
    counted = small(dtype, cfg=cfg, patch=patch)
    each, branches, others = jnp.dtype(dtype).itemsize, 2 // cfg, patch - 1

    def sent(messages: int, elements: int, size: int) -> Volume:
        return Volume(messages, elements, elements * size)

    tokens = sent(2 * ATTENTIONS, others * branches * TOKENS // patch, each)
    displaced = {
        "halos": sent(2, 2 * branches * (EDGE - FIRST), each),
        "moments": sent(1, 2 * others * branches * MOMENTS, 4),
        "tokens": tokens,
        "fresh_halos": sent(2, 2 * branches * (12 * 4 + FIRST), each),
        "guidance": sent(1, 16 // patch * 12 * 4, 4) if cfg == 2 else Volume(),
    }
    assert counted.steps["displaced"] == displaced
    # In a synchronous step there are as many messages as layers ask, which are gathered: half as much as a sum.
    assert counted.steps["synchronous"] == displaced | {
        "halos": sent(CONVS, others * 2 * branches * EDGE, each),
        "fresh_halos": sent(2, 2 * branches * 12 * 4, each),
        "moments": sent(NORMS, others * branches * MOMENTS, 4),
    }
    total = counted.step("displaced")
    assert total.bytes == sum(of.bytes for of in displaced.values())
    assert total.messages == 2 + 1 + 8 + 2 + (cfg == 2)
    assert counted.carry == {
        "halos": 2 * branches * EDGE * each,
        "moments": branches * MOMENTS * 4,
        "tokens": branches * TOKENS // patch * each,
        "latents": 16 // patch * 12 * 4 * 4,
    }


def test_modes_differ_in_what_they_send_and_hold() -> None:
    def kinds(mode: str) -> tuple[set[str], set[str]]:
        counted = small(patch=2, mode=mode)
        last = list(counted.steps.values())[-1] if "displaced" in counted.steps else {}
        sends = {"latents" if kind == "fresh_halos" else kind for kind, volume in last.items() if volume.messages}
        return sends, {kind for kind, held in counted.carry.items() if held}

    assert kinds("stale_gn") == ({"halos", "moments", "tokens", "latents"},) * 2
    # Its group norms wait for this step's moments, one message each, and hold nothing.
    assert kinds("sync_gn") == ({"halos", "moments", "tokens", "latents"}, {"halos", "tokens", "latents"})
    assert small(patch=2, mode="sync_gn").steps["displaced"]["moments"].messages == NORMS
    assert kinds("separate_gn") == ({"halos", "tokens", "latents"},) * 2
    # Nothing but the latents themselves is sent; what was received of all devices is kept.
    assert kinds("no_sync") == ({"latents"}, {"halos", "tokens", "latents"})
    assert small(patch=2, mode="no_sync").carry["tokens"] == 2 * 2 * TOKENS
    for mode, messages in (("full_sync", CONVS + NORMS + 2 * ATTENTIONS + 2), ("naive_patch", 0)):
        assert kinds(mode) == (set(), {"latents"})
        assert small(patch=2, mode=mode).step("synchronous").messages == messages


def test_a_policy_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh halos in a displaced step: a message of each convolution, and none of them carried or along with others."""
    policy = Policy(FreshHalos(), StaleAttention(), StaleMoments())
    monkeypatch.setitem(policies.MODES, "by_hand", policy)
    counted, stale = small(patch=4, mode="by_hand"), small(patch=4, mode="stale_gn")
    synchronous, displaced = counted.steps["synchronous"], counted.steps["displaced"]
    alone = Volume(CONVS, 3 * 2 * EDGE, 3 * 2 * EDGE * 2)  # a row for each of three others: half of what is gathered
    assert displaced == stale.steps["displaced"] | {"halos": alone, "fresh_halos": synchronous["fresh_halos"]}
    assert synchronous["halos"].elements == 2 * alone.elements
    assert counted.carry == stale.carry | {"halos": 0}


def test_pictures_branches_and_groups_of_devices() -> None:
    one, three = small(patch=2), small(patch=2, pictures=3)
    assert three.step("displaced").bytes == 3 * one.step("displaced").bytes
    assert three.carry_bytes == 3 * one.carry_bytes
    assert small(data=3, patch=2, pictures=3).steps["displaced"] == one.steps["displaced"]
    alone = small(patch=2, guided=False)
    assert alone.steps["displaced"] == small(patch=2, cfg=2).steps["displaced"] | {"guidance": Volume()}


def test_real_devices_count_the_same() -> None:
    assert dataclasses.replace(small(patch=2, emulate=False), parallel=small(patch=2).parallel) == small(patch=2)


def test_one_device_sends_nothing() -> None:
    counted = small(patch=1)
    assert set(counted.steps) == {"synchronous"}
    assert counted.step("synchronous") == Volume()


@pytest.mark.parametrize(
    ("parallel", "options", "message"),
    [
        (Parallel(patch=2, mode="tensor"), {}, "mode is 'tensor'.*choose another"),
        (Parallel(cfg=2, emulate=True), {"guided": False}, "cfg is 2.*no guidance.*use cfg=1"),
        (Parallel(data=2, emulate=True), {"pictures": 3}, "3 pictures cannot be divided among data=2"),
    ],
)
def test_what_cannot_be_counted(parallel: Parallel, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DistrijaxError, match=message):
        count_traffic(SMALL, parallel, **options)


def test_a_unet_that_sees_a_mask_sends_more_of_its_input_alone() -> None:
    """Nine channels in place of four in the rows of latents, which are sent anew in every step."""
    config = dataclasses.replace(SMALL, in_channels=9)
    parallel = Parallel(patch=4, mode="corrected_async_gn", emulate=True)
    counted = count_traffic(config, parallel, jnp.bfloat16, height=16, width=12)
    assert counted.carry == small(patch=4).carry
    for phase, kinds in small(patch=4).steps.items():
        for kind, volume in kinds.items():
            more = 2 * 2 * 12 * 5 if kind == "fresh_halos" else 0
            assert counted.steps[phase][kind].elements == volume.elements + more


def test_verbose_prints_it_before_the_first_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StableDiffusionXLPipeline, "__call__", stop)
    monkeypatch.setattr(StableDiffusionXLPipeline, "_begin_compiling", lambda *_, **__: [])
    sizes = "--height 64 --width 96 --num-images 2 --cfg 2 --patch 2 --emulate"
    assert cli.main(["generate", "a red circle", "--verbose", *sizes.split()]) == 130
    parallel, model = Parallel(cfg=2, patch=2, emulate=True), find("demo")
    scheduler = scheduler_from_config(model.scheduler)
    counted = count_traffic(model.unet, parallel, "float32", height=8, width=12, pictures=2, scheduler=scheduler)
    assert str(counted) in capsys.readouterr().err


def test_sdxl_on_eight_devices() -> None:
    """The promise: a guidance branch's carry of 62 MB, and less received than the original's 0.424e9 elements."""
    config = json.loads((resources.files("distrijax.checkpoint") / "configs" / "base_unet.json").read_text())
    stale = Parallel(patch=8, mode="corrected_async_gn", emulate=True)
    counted = count_traffic(UNetConfig.from_json(config), stale, jnp.bfloat16)  # 1024x1024
    tokens = 2 * (10 * 64 * 64 * 640 + 60 * 32 * 32 * 1280)  # keys and values of a branch
    assert counted.carry["tokens"] == 2 * 2 * tokens // 8
    assert counted.steps["displaced"]["tokens"].elements == 2 * tokens * 7 // 8
    assert 120e6 < counted.carry_bytes < 124e6  # two branches
    assert 0.37e9 < counted.step("displaced").elements < 0.38e9
    # 39 halos, 46 moments, 70 keys and values: the 155 tensors of the original. And the latents, to both sides.
    assert counted.step("synchronous").messages == 39 + 46 + 2 * 70 + 2
    assert counted.step("displaced").messages == 2 + 1 + 2 * 70 + 2
    table = str(counted)
    print(table)
    for shown in ("8 devices", "corrected_async_gn", "734.003 MB", "121.298 MB", "in a displaced step", "145"):
        assert shown in table
    predicted = Parallel(patch=8, mode="predicted", emulate=True)
    other = count_traffic(UNetConfig.from_json(config), predicted, jnp.bfloat16)
    assert other.steps["displaced"] == counted.steps["displaced"]  # nothing more is sent; what is sent is carried twice
    assert 240e6 < other.carry_bytes < 248e6
