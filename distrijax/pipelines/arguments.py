"""The arguments of a call, on their way to the stages that read them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def call_with(function: Callable[..., T], given: Mapping[str, Any], **others: Any) -> T:
    """Call a function with those of the `given` arguments that it takes by name, and with `others`.

    The pipelines have some forty arguments each, and most belong to a single stage: the stage names what it takes, and
    a pipeline passes its `locals()`. An argument that a pipeline lacks has the stage's default.
    """
    names = inspect.signature(function).parameters
    return function(**{name: given[name] for name in names if name in given} | others)
