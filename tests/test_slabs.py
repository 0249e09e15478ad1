"""Slabs of rows: how a picture is cut, what devices deliver to each other, and a function spread over them."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from distrijax.errors import DistrijaxError
from distrijax.parallel.layout import SlabLayout
from distrijax.parallel.messages import Moments, deal_edges, gather_edges, gather_moments, gather_tokens, swap_all
from distrijax.parallel.options import Parallel
from distrijax.parallel.policies import TENSOR
from distrijax.parallel.slab import Slab
from distrijax.parallel.spread import PER_DEVICE, spread
from distrijax.parallel.transport import AXIS, MESH, LocalCopies

pytestmark = pytest.mark.fast


# ------------------------------------------------------------------------------------------------------------- layout


def layouts(count: int = 300) -> Iterator[SlabLayout]:
    rng = np.random.RandomState(0)
    for _ in range(count):
        yield SlabLayout(int(rng.randint(1, 300)), int(rng.randint(1, 17)), int(2 ** rng.randint(0, 5)))


def test_slabs_cover_the_picture() -> None:
    for layout in layouts():
        assert layout.slab % layout.multiple == 0
        assert layout.padded_height == layout.devices * layout.slab == layout.height + layout.padding
        # Slabs of `multiple` rows fewer would not do.
        assert layout.devices * (layout.slab - layout.multiple) < layout.height <= layout.padded_height


def test_every_row_is_counted_once_at_every_level() -> None:
    for layout in layouts():
        slab, height = layout.slab, layout.height
        while True:
            rows = np.arange(layout.devices * slab).reshape(layout.devices, slab)
            assert layout.height_at(slab) == height
            assert layout.counts(slab).tolist() == (rows < height).sum(1).tolist()
            if layout.slab // slab == layout.multiple:
                break
            slab, height = slab // 2, -(-height // 2)  # as a convolution of stride 2 does
        assert layout.height_at(8 * layout.slab) == 8 * layout.height  # as the autoencoder's decoder does


def test_odd_heights() -> None:
    layout = SlabLayout(33, 2, 4)
    assert (layout.slab, layout.padding) == (20, 7)
    assert [layout.height_at(slab) for slab in (20, 10, 5)] == [33, 17, 9]
    assert [layout.counts(slab).tolist() for slab in (20, 10, 5)] == [[20, 13], [10, 7], [5, 4]]
    assert SlabLayout(9, 8).counts(2).tolist() == [2, 2, 2, 2, 1, 0, 0, 0]  # some devices have nothing but padding


@pytest.mark.parametrize("axis", [0, 1])
def test_padding_is_zero_and_below(axis: int) -> None:
    x = jnp.ones((10, 10))
    padded = np.moveaxis(np.asarray(SlabLayout(10, 2, 4).pad(x, axis)), axis, 0)
    assert padded.shape == (16, 10)
    assert padded[:10].all()
    assert not padded[10:].any()
    assert SlabLayout(10, 5).pad(x, axis) is x


def test_layout_of_a_mesh() -> None:
    assert Parallel(patch=4, emulate=True).layout(33, 4) == SlabLayout(33, 4, 4)
    assert Parallel(data=2, cfg=2).layout(33, 4) == Parallel(patch=2, mode=TENSOR).layout(33, 4) == SlabLayout(33, 1)
    with pytest.raises(DistrijaxError, match="patch=9 or less"):
        Parallel(patch=10, emulate=True).layout(33, 4)


# ----------------------------------------------------------------------------------------------------------- delivery


def on_each(function: Callable[..., Any], *args: Any) -> Any:
    """Run `function` on virtual devices, each with its entry of `args`."""
    return jax.jit(jax.vmap(function, axis_name=AXIS))(*args)


def slabs(layout: SlabLayout, x: np.ndarray, fill: float = 0.0) -> np.ndarray:
    """Cut `x` [B, H, W, C] into the slabs [N, B, h, W, C] of all devices, with `fill` as padding."""
    padded = np.pad(x, ((0, 0), (0, layout.padding), (0, 0), (0, 0)), constant_values=fill)
    return np.stack(np.split(padded, layout.devices, 1))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(*shape).astype(np.float32)


@pytest.mark.parametrize(("height", "devices"), [(12, 1), (12, 3), (13, 4), (9, 8)])
def test_moments_of_uneven_slabs(height: int, devices: int) -> None:
    """Whatever is in the rows of padding, those of the whole picture come out, to fp32's rounding of sums of 300."""
    layout = SlabLayout(height, devices)
    x = normal(2, height, 5, 6) + np.linspace(-3, 3, height, dtype=np.float32)[:, None, None]
    slab = Slab(layout, MESH)
    own = on_each(lambda part: slab.own_moments(part, 2), slabs(layout, x, fill=1e3))
    mean, variance = slab.merge_moments(own, layout.slab)
    groups = x.astype(np.float64).reshape(2, height, 5, 2, 3)
    np.testing.assert_allclose(mean, groups.mean((1, 2, 4)), atol=1e-6)
    np.testing.assert_allclose(variance, groups.var((1, 2, 4)), rtol=1e-5)


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_neighbours_rows_arrive(devices: int) -> None:
    """Layers want 0 to 2 rows on each side, at their own widths: all exact, and zero outside of the picture."""
    wants = {"down": (0, 1, 6), "wide": (2, 2, 8), "narrow": (1, 1, 3), "up": (1, 0, 4)}
    pictures = {layer: normal(2, 4 * devices, width, 3, seed=width) for layer, (_, _, width) in wants.items()}
    layout = SlabLayout(4 * devices, devices)
    slab = Slab(layout, MESH)

    def deliver(parts: dict[str, Array]) -> Any:
        return swap_all({layer: slab.edges(x, *wants[layer][:2]) for layer, x in parts.items()}, MESH)

    arrived = on_each(deliver, {layer: slabs(layout, x) for layer, x in pictures.items()})
    assert arrived.keys() == wants.keys()
    for layer, (above, below, _) in wants.items():
        around = np.pad(pictures[layer], ((0, 0), (above, below), (0, 0), (0, 0)))
        for device in range(devices):
            start = 4 * device
            np.testing.assert_array_equal(arrived[layer][0][device], around[:, start : start + above])
            end = start + above + 4
            np.testing.assert_array_equal(arrived[layer][1][device], around[:, end : end + below])


@pytest.mark.parametrize("deliver", [gather_edges, deal_edges])
@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_neighbours_rows_arrive_in_one_message(devices: int, deliver: Any) -> None:
    """As those of a swap do, inside the picture; what a gather delivers at its ends is masked."""
    layout = SlabLayout(4 * devices, devices)
    slab = Slab(layout, MESH)
    for above, below in ((1, 1), (0, 1), (2, 1), (2, 0)):
        x = normal(2, layout.height, 3, 2)

        def extended(part: Array) -> Array:
            rows = deliver(slab.edges(part, above, below), MESH)  # noqa: B023
            whole = jnp.concatenate([rows[0], part, rows[1]], 1)
            return slab.without_outside(whole, above, below) if deliver is gather_edges else whole  # noqa: B023

        around = np.pad(x, ((0, 0), (above, below), (0, 0), (0, 0)))
        arrived = on_each(extended, slabs(layout, x))
        for device, got in enumerate(arrived):
            np.testing.assert_array_equal(got, around[:, 4 * device : 4 * device + 4 + above + below])


def test_moments_arrive() -> None:
    pairs = {f"norm{i}": (normal(4, 2, 3, seed=i), normal(4, 2, 3, seed=9 + i) ** 2) for i in range(3)}
    arrived = on_each(lambda own: gather_moments(Moments.stack(own, dict.fromkeys(own, 4)), MESH), pairs)
    for layer, expected in pairs.items():
        for device in range(4):
            got = jax.tree.map(lambda x: x[device], arrived)[layer]  # noqa: B023
            np.testing.assert_array_equal(got, expected)


def test_tokens_arrive_in_order() -> None:
    """Rows before columns, as in the whole picture, with the padding at the end, where `existing_tokens` cuts it."""
    layout, width = SlabLayout(10, 4), 5
    keys, values = normal(2, 10, width, 3), normal(2, 10, width, 3, seed=1)

    def deliver(k: Array, v: Array) -> Any:
        k, v = (x.transpose(1, 2, 0, 3) for x in (k, v))  # [h, W, B, C]
        own = {"attn": tuple(x.reshape(-1, 2, 3) for x in (k, v))}
        return [Slab(layout, MESH).existing_tokens(x, k) for x in gather_tokens(own, MESH)["attn"]]

    for arrived, whole in zip(
        on_each(deliver, slabs(layout, keys), slabs(layout, values)), (keys, values), strict=True
    ):
        expected = whole.transpose(1, 2, 0, 3).reshape(-1, 2, 3)
        np.testing.assert_array_equal(arrived, np.broadcast_to(expected, (4, *expected.shape)))


def test_number_of_messages() -> None:
    """One to each neighbour for all halos, one for all moments, two for each layer's keys and values."""
    halos = {f"conv{i}": (jnp.ones((1, i, 4, 2)), jnp.ones((1, 1, 4, 2))) for i in range(1, 5)}
    names = [f"norm{i}" for i in range(4)]
    moments = Moments.stack({name: (jnp.ones((1, 2)),) * 2 for name in names}, dict.fromkeys(names, 4))
    tokens = {f"attn{i}": (jnp.ones((3, 1, 2)),) * 2 for i in range(4)}

    def messages(deliver: Callable[..., Any], pieces: Any) -> list[int]:
        spreading = jax.shard_map(
            lambda x: deliver(x, MESH), mesh=Parallel(patch=2).mesh, in_specs=P(), out_specs=P(AXIS), check_vma=False
        )
        program = str(jax.make_jaxpr(spreading)(pieces))
        return [program.count(f" = {name}[") for name in ("ppermute", "psum", "all_gather")]

    assert messages(swap_all, halos) == [2, 0, 0]
    assert messages(lambda x, transport: gather_moments(x, transport).values[0], moments) == [0, 1, 0]
    assert messages(gather_tokens, tokens) == [0, 0, 8]


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_local_copies_have_the_shapes_of_messages(devices: int) -> None:
    edges = jnp.ones((2, 1, 8, 3)), jnp.ones((2, 2, 8, 3))

    def used(transport: Any) -> Any:
        assert transport.count() == devices
        dealt = transport.deal(jnp.arange(3 * devices).reshape(devices, 3) + transport.index())
        return transport.swap(edges), transport.gather(edges[0]), transport.sum(edges[0]), dealt

    real = jax.eval_shape(lambda: on_each(lambda _: used(MESH), jnp.arange(devices)))
    local = jax.eval_shape(lambda: used(LocalCopies(devices)))
    assert local == jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), real)


# ------------------------------------------------------------------------------------------------------------- spread


MESHES = list(product((1, 2), repeat=3))


@pytest.mark.parametrize("emulate", [False, True], ids=["real", "emulated"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_spread_is_the_function_of_whole_arrays(sizes: tuple[int, int, int], emulate: bool) -> None:
    parallel = Parallel(*sizes, emulate=emulate)
    devices = parallel.size
    x = {"a": normal(8, 3, 4), "b": normal(8, 2)}  # one spec for both
    y, scale, state = normal(2, 8, seed=1), np.float32(3), normal(devices, 2, seed=2)

    def each(x: dict[str, Array], y: Array, scale: Array, state: Array) -> Any:
        place = lax.axis_index(("data", "cfg", "patch")).astype(jnp.float32)
        total = lax.psum(x["a"].sum(0), ("data", "patch"))
        before = MESH.swap((x["b"][:1], x["b"][-1:]))[0]
        return {n: scale * v for n, v in x.items()}, y + y, total, lax.psum(y, "cfg"), state + place, before

    cut, turned = P(("data", "patch")), P("cfg", ("patch", "data"))
    specs = (cut, turned, P(), PER_DEVICE), (cut, turned, P(), P(None, ("patch", "data")), PER_DEVICE, cut)
    # `before` is one row of each slab: spread over data and patch, the same for both guidance branches.
    scaled, doubled, total, both, counted, before = jax.jit(spread(each, parallel, *specs))(x, y, scale, state)
    jax.tree.map(np.testing.assert_array_equal, scaled, {name: 3 * value for name, value in x.items()})
    np.testing.assert_array_equal(doubled, 2 * y)
    np.testing.assert_allclose(total, x["a"].sum(0), atol=1e-5)  # sums of 8 in another order
    np.testing.assert_allclose(both, y if sizes[1] == 1 else y[:1] + y[1:], atol=1e-6)
    np.testing.assert_array_equal(counted, state + np.arange(devices, dtype=np.float32)[:, None])
    rows = x["b"].reshape(sizes[0], sizes[2], -1, 2)[:, :, -1]  # the last row of every slab
    rows = np.concatenate([np.zeros_like(rows[:, :1]), rows[:, :-1]], 1)
    np.testing.assert_array_equal(before, rows.reshape(-1, 2))
