"""What the plots of several tools share."""

from importlib.util import find_spec
from pathlib import Path

from distrijax.errors import DistrijaxError

FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raise DistrijaxError if no plot can be written to `path`, before anything is computed."""
    if path.suffix.lower() not in FORMATS:
        raise DistrijaxError(f"plot is {str(path)!r}; it must end in {', '.join(FORMATS)}")
    if find_spec("matplotlib") is None:
        raise DistrijaxError("a plot needs matplotlib: pip install 'distrijax[train]'; or leave out --plot")
