"""What a kernel takes by its shape, by hand; and the plan beside what was measured."""

import runpy
from pathlib import Path

import pytest

from distrijax.parallel.cards import CARDS, Rates
from distrijax.tools.plan.hlo import parse
from distrijax.tools.plan.kernels import Work
from distrijax.tools.plan.reading import read
from distrijax.tools.plan.report import COMPARED
from distrijax.tools.plan.schedule import walk

# Multiprocessors of 1 TFLOP/s; a round trip to memory takes 1 µs; memory is free unless a test says otherwise.
FREE = Rates(cores=100, lanes=100, clock=1.5e9, flops=1e14, memory=1e30, link=1, network=1, kernel=1e-6)
ROUND_TRIP = 1e-6


def work(category: str, *shape: int, **choices: float) -> Work:
    shapes = (shape,) if shape else ()
    nothing = {"read": 0, "written": 0, "operations": 0, "special": 0, "chain": 0}
    return Work("", category, "", shapes, **nothing | choices)


def busy(*args: object, rates: Rates = FREE, **choices: float) -> float:
    return work(*args, **choices).seconds(rates) - FREE.kernel


@pytest.mark.parametrize(
    ("rows", "microseconds"),
    [
        (64, 2 * 64 * 64 * 1000 / 1e6 / 0.6),  # two tiles of 64 columns, which are slow
        (128 * 100, 2 * 128 * 128 * 1000 / 1e6),  # 100 tiles of 128 x 128
        (128 * 100 + 1, 2 * 64 * 128 * 1000 / 1e6 * 3),  # one row more: 201 of 64 x 128 in three waves
    ],
)
def test_products_go_in_waves_of_tiles(rows: int, microseconds: float) -> None:
    assert busy("products", 1, rows, 128, 1000) == pytest.approx(1e-6 * microseconds)


def test_a_split_of_the_contracted_dimension_fills_more_multiprocessors() -> None:
    # 80 tiles of 64 x 64 are the most that fill a wave; of four times as many parts, 80 of 128 x 128 do.
    assert busy("products", 1, 256, 1280, 1280) == pytest.approx(2 * 64 * 64 * 1280 / 1e12 / 0.6)
    assert busy("products", 4, 256, 1280, 320) == pytest.approx(2 * 128 * 128 * 320 / 1e12)


def test_a_small_product_waits_for_its_first_and_last_bytes() -> None:
    rates = Rates(cores=100, lanes=100, clock=1.5e9, flops=1e14, memory=1e12, link=1, network=1, kernel=1e-6)
    # One wave: 1 MB takes 1 µs and hides, but a quarter of what is read and all that is written does not.
    seconds = busy("products", 1, 128, 128, 1024, rates=rates, read=800_000, written=200_000)
    assert seconds == pytest.approx(2 * 64 * 64 * 1024 / 1e12 / 0.6 + 0.25 * 0.8e-6 + 0.2e-6)


def test_attention_takes_turns_at_products_and_exponentials() -> None:
    one = 128 * 128 * (4 * 64 / 1e12 + 1 / (16 * 0.8 * 1.5e9))
    assert busy("attention", 10, 128, 128, 64) == pytest.approx(one)
    assert busy("attention", 10, 128, 77, 64) == pytest.approx(one)  # the text's 77 tokens fill a tile
    assert busy("attention", 101, 128, 256, 64) == pytest.approx(2 * 2 * one)


def test_elementwise_kernels_move_bytes_or_compute() -> None:
    rates = Rates(cores=100, lanes=100, clock=1.5e9, flops=1e14, memory=1e12, link=1, network=1, kernel=1e-6)
    assert busy("copies", rates=rates, read=10**6, written=10**6) == pytest.approx(2e-6)
    lanes, special = 100 * 100 * 1.5e9 * 0.8, 100 * 16 * 1.5e9 * 0.8
    seconds = busy("elementwise and norms", rates=rates, read=1, operations=10**9, special=10**8, chain=2)
    assert seconds == pytest.approx(1e9 / lanes + 1e8 / special + 2 * ROUND_TRIP)


KERNELS = """HloModule kernels, is_scheduled=true

%silu (p: bf16[8,100]) -> bf16[8,100] {
  %p = bf16[8,100]{1,0} parameter(0)
  %c = f32[8,100]{1,0} convert(%p)
  %n = f32[8,100]{1,0} negate(%c)
  %e = f32[8,100]{1,0} exponential(%n)
  %d = f32[8,100]{1,0} divide(%c, %e)
  ROOT %r = bf16[8,100]{1,0} convert(%d)
}

%sums (p: f32[256,100]) -> f32[100] {
  %p = f32[256,100]{1,0} parameter(0)
  %z = f32[] constant(0)
  ROOT %s = f32[100]{0} reduce(%p, %z), dimensions={0}, to_apply=%add
}

%norms (p: f32[256,100]) -> f32[256] {
  %p = f32[256,100]{1,0} parameter(0)
  %z = f32[] constant(0)
  ROOT %s = f32[256]{0} reduce(%p, %z), dimensions={1}, to_apply=%add
}

%body (carry: (bf16[8,100], f32[256,100])) -> (bf16[8,100], f32[256,100]) {
  %carry = (bf16[8,100]{1,0}, f32[256,100]{1,0}) parameter(0)
  %x = bf16[8,100]{1,0} get-tuple-element(%carry), index=0
  %y = f32[256,100]{1,0} get-tuple-element(%carry), index=1
  %a = bf16[8,100]{1,0} fusion(%x), kind=kLoop, calls=%silu, metadata={op_name="jit(f)/while/body/unet.act/mul"}
  %b = f32[100]{0} fusion(%y), kind=kInput, calls=%sums
  %c = f32[256]{0} fusion(%y), kind=kCustom, calls=%norms
  %m = (f32[2,256,320]{2,1,0}, s8[33554432]{0}) custom-call(%q, %w), custom_call_target="__cublas$lt$matmul", \
backend_config={"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],\
"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}
  %q = bf16[2,256,640]{2,1,0} copy(%x)
  %w = bf16[2,640,320]{2,1,0} copy(%x)
  %i = bf16[1,10,32,640]{3,2,1,0} copy(%x)
  %k = bf16[1280,3,3,640]{3,2,1,0} copy(%x)
  %v = (bf16[1,8,32,1280]{3,2,1,0}, u8[77]{0}) custom-call(%i, %k), window={size=3x3 pad=0_0x1_1}, \
dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBiasActivationForward"
  %t = bf16[1,77,20,64]{3,2,1,0} copy(%x)
  %h = bf16[1,256,20,64]{3,2,1,0} copy(%x)
  %f = (bf16[1,20,256,64]{3,1,2,0}, u8[0]{0}) custom-call(%h, %t, %t), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %out = (bf16[8,100]{1,0}, f32[256,100]{1,0}) tuple(%a, %y)
}

ENTRY %main (arg: (bf16[8,100], f32[256,100])) -> (bf16[8,100], f32[256,100]) {
  %arg = (bf16[8,100]{1,0}, f32[256,100]{1,0}) parameter(0)
  ROOT %while = (bf16[8,100]{1,0}, f32[256,100]{1,0}) while(%arg), condition=%cond, body=%body
}
"""


def test_what_kernels_do() -> None:
    assert len(parse(KERNELS)) == 5
    kernels = {item.name: item for item in read(KERNELS) if isinstance(item, Work)}
    silu, columns, rows = (kernels[name] for name in "abc")
    # Five operations and ten to handle each element; an exponential and a division are slow.
    assert (silu.operations, silu.special, silu.chain, silu.layer) == (800 * 15, 800 * 2, 1, "unet.act")
    assert (silu.read, silu.written) == (1600, 1600)
    # A column is read 128 elements at a time; a row at once.
    assert (columns.operations, columns.chain) == (100 * 10 + 25600, 1 + 256 / 128)
    assert (rows.operations, rows.chain) == (256 * 10 + 25600, 2)
    product, convolution, attention = (kernels[name] for name in "mvf")
    assert product.shapes == ((2, 256, 320, 640),)
    assert product.flops == 2 * 2 * 256 * 320 * 640
    assert product.written == 2 * 256 * 320 * 4  # without the workspace
    assert convolution.shapes == ((1, 256, 1280, 9 * 640),)
    assert convolution.flops == 2 * 256 * 1280 * 9 * 640
    assert attention.shapes == ((20, 256, 77, 64),)
    assert attention.flops == 4 * 20 * 256 * 77 * 64
    assert [kernels[n].category for n in "abmvfq"] == [
        "elementwise and norms", "elementwise and norms", "products", "convolutions", "attention", "copies"
    ]  # fmt: skip


def test_convolutions_cut_cuda_graphs() -> None:
    """Eight kernels in a row are one launch, the convolution another; three after it are too few for a graph."""
    assert walk(read(KERNELS), FREE, 1).launches == 1 + 1 + 3


def test_the_plan_beside_measurements() -> None:
    """Within 10 % of the H200 and 25 % of DistriFusion's A100s, by the stored kernels; the report states the errors."""
    script = Path(__file__).parents[1] / "docs" / "measurements" / "plan.py"
    cases = list(runpy.run_path(str(script))["cases"]())
    for card, most, fewest in (("h200", 10, 8), ("a100", 25, 12)):
        errors = [100 * case.error for case in cases if case.card == card]
        assert len(errors) >= fewest
        assert max(map(abs, errors)) <= most
        _, low, high = COMPARED[CARDS[card].name]
        assert low - 1 < min(errors) < low + 1
        assert high - 1 < max(errors) < high + 1
