"""Checks of arguments let through what is meant, in Python's own types, and refuse the rest by name."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distrijax.checks import finite_number, one_of, true_or_false, whole_number
from distrijax.errors import DistrijaxError

pytestmark = pytest.mark.fast

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "value", "bounds", "expected"),
    [
        (whole_number, 0, {}, 0),
        (whole_number, np.int64(7), {"least": 7, "most": 7}, 7),
        (whole_number, -3, {"least": -3}, -3),
        (finite_number, 2, {}, 2.0),
        (finite_number, np.float32(0.5), {"least": 0.5, "most": 0.5}, 0.5),
        (finite_number, -1e30, {"most": 0}, -1e30),
        (one_of, "np", {"choices": ("pil", "np")}, "np"),
        (one_of, "np", {"choices": iter(["pil", "np"])}, "np"),
        (true_or_false, np.True_, {}, True),
        (true_or_false, False, {}, False),
    ],
)
def test_accepted(check: Callable[..., Any], value: Any, bounds: dict[str, Any], expected: Any) -> None:
    result = check("x", value, **bounds)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("check", "value", "bounds", "rule"),
    [
        *((whole_number, value, {}, "0 or more") for value in (-1, 1.0, True, np.True_, "1", None, NAN, [1])),
        (whole_number, 0, {"least": 1}, "1 or more"),
        *((whole_number, value, {"least": 1, "most": 3}, "from 1 to 3") for value in (0, 4, np.int64(4))),
        *((finite_number, value, {}, "finite") for value in (NAN, INFINITY, -INFINITY, True, "1", None, 1j)),
        (finite_number, np.float32("inf"), {"least": 0}, "finite"),
        (finite_number, -0.1, {"least": 0}, "0 or more"),
        *((finite_number, value, {"least": 0, "most": 1}, "from 0 to 1") for value in (-0.1, 1.1, 2)),
        (finite_number, 1, {"most": 0.5}, "to 0.5"),
        *((one_of, value, {"choices": ("pil", "np")}, "pil, np") for value in ("pt", None, 1)),
        (one_of, "pt", {"choices": (name for name in ("pil", "np"))}, "pil, np"),
        *((true_or_false, value, {}, "True or False") for value in (0, 1, "yes", None)),
    ],
)
def test_refused(check: Callable[..., Any], value: Any, bounds: dict[str, Any], rule: str) -> None:
    with pytest.raises(DistrijaxError, match=re.escape(f"x is {value!r}; it must be") + ".*" + re.escape(rule)):
        check("x", value, **bounds)
