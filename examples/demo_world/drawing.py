"""Pictures of the demo world: 256x256 pixels, x to the right and y down; all lengths are in pixels."""

from dataclasses import dataclass

import numpy as np

from demo_world.scenes import COLOURS, Background, Scene

CANVAS = 256
GRAY = (128, 128, 128)
DEFAULT_BACKGROUND = (205, 205, 205)
RADII = {"small": (21, 27), "medium": (33, 41), "large": (50, 58)}  # half the side of an item's bounding box
CENTRES: dict[str, tuple[float, float]] = {  # of each place, as a fraction of the canvas
    "left": (0.24, 0.5), "right": (0.76, 0.5), "top": (0.5, 0.24), "bottom": (0.5, 0.76), "center": (0.5, 0.5),
    "top left": (0.24, 0.24), "top right": (0.76, 0.24), "bottom left": (0.24, 0.76), "bottom right": (0.76, 0.76),
}  # fmt: skip
ANCHORS: dict[str, tuple[tuple[float, float], ...]] = {  # mean centre of each item of an arrangement
    "one": ((0.5, 0.5),),
    "above": ((0.5, 0.27), (0.5, 0.73)),
    "left": ((0.27, 0.5), (0.73, 0.5)),
    "inside": ((0.5, 0.5), (0.5, 0.5)),
    "beside": ((0.27, 0.5), (0.73, 0.5)),
    "row": ((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)),
    "column": ((0.5, 0.19), (0.5, 0.5), (0.5, 0.81)),
    "two": ((0.27, 0.5), (0.73, 0.5)),
    "three": ((0.19, 0.5), (0.5, 0.5), (0.81, 0.5)),
    "places": ((0.5, 0.5), (0.5, 0.5)),
}


@dataclass(frozen=True)
class Placement:
    """Position of an item: its centre, and half the side of its bounding box."""

    x: float
    y: float
    radius: float


def anchors(scene: Scene) -> list[tuple[float, float]]:
    """Return the mean centre (x, y) of each item as fractions of the canvas; 0.5 where the caption leaves it open."""
    centres = ANCHORS[scene.arrangement]
    return [CENTRES[i.place] if i.place else xy for i, xy in zip(scene.items, centres, strict=True)]


def arrange(scene: Scene, rng: np.random.Generator) -> list[Placement]:
    """Return random positions that match the scene: inside the canvas, and at least 8 pixels apart."""
    centres = anchors(scene)
    if scene.arrangement == "beside" and rng.random() < 0.5:
        centres = centres[::-1]
    vertical = scene.arrangement in ("above", "column")
    horizontal = scene.arrangement in ("left", "beside", "row", "two", "three")
    for attempt in range(200):
        spread = 1.0 - attempt / 200  # crowded scenes end near the anchors, where everything fits
        radii = [rng.uniform(*RADII[i.size]) for i in scene.items]
        if scene.arrangement == "inside":
            x, y = rng.uniform(0.35, 0.65, 2) * CANVAS
            return [Placement(x, y, radii[0]), Placement(x, y, 58 + 10 * rng.random())]
        if len(radii) == 3:
            radii = [min(r, 36.0) for r in radii]
        placements = []
        for (x, y), radius in zip(centres, radii, strict=True):
            along, across = 0.05, 0.16
            if scene.items[0].place:
                along = across = 0.04
            dx = across if vertical else along if horizontal else across
            dy = across if horizontal else along if vertical else across
            room = (radius + 6) / CANVAS
            cx = np.clip(x + spread * rng.uniform(-dx, dx), room, 1 - room)
            cy = np.clip(y + spread * rng.uniform(-dy, dy), room, 1 - room)
            placements.append(Placement(float(cx) * CANVAS, float(cy) * CANVAS, radius))
        if not crowded(placements):
            break
    return placements


def crowded(placements: list[Placement]) -> bool:
    """Return whether the bounding boxes of any two items are less than 8 pixels apart."""
    pairs = [(p, q) for i, p in enumerate(placements) for q in placements[:i]]
    return any(max(abs(p.x - q.x), abs(p.y - q.y)) < p.radius + q.radius + 8 for p, q in pairs)


def coverage(shape: str, x: np.ndarray, y: np.ndarray, edge: float) -> np.ndarray:
    """Return the fraction of the pixel at (x, y) that lies inside a shape that fills [-1, 1]².

    Args:
        edge: Width of a pixel in the unit of `x` and `y`; edges are blended over it.
    """
    if shape in ("circle", "ring"):
        r = np.hypot(x, y)
        distance = r - 0.97 if shape == "circle" else np.abs(r - 0.76) - 0.21
    else:
        corners = _polygon(shape)
        squared, inside = np.full(x.shape, np.inf), np.zeros(x.shape, bool)
        for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            ex, ey, px, py = bx - ax, by - ay, x - ax, y - ay
            t = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
            squared = np.minimum(squared, (px - t * ex) ** 2 + (py - t * ey) ** 2)
            inside ^= ((ay > y) != (by > y)) & (x < ax + ex * (y - ay) / (ey if ey else 1.0))
        distance = np.where(inside, -np.sqrt(squared), np.sqrt(squared))
    return np.clip(0.5 - distance / edge, 0, 1)


def _polygon(shape: str) -> np.ndarray:
    """Return the corners [N, 2] of a shape with straight edges in the box [-1, 1]²."""
    if shape == "square":
        points = [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    elif shape == "triangle":
        points = [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)]
    elif shape == "diamond":
        points = [(0.0, -1.0), (0.85, 0.0), (0.0, 1.0), (-0.85, 0.0)]
    elif shape == "cross":
        a, b = 0.34, 0.98
        half = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        points = half + [(-x, -y) for x, y in half]
    else:
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        length = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
        points = list(zip(length * np.cos(angles), length * np.sin(angles) + 0.05, strict=True))
    return np.asarray(points, np.float64)


def paint_background(background: Background) -> np.ndarray:
    """Return the empty canvas, float32 [256, 256, 3] from 0 to 255."""
    if background.kind == "default" or background.colour is None:
        return np.full((CANVAS, CANVAS, 3), DEFAULT_BACKGROUND, np.float32)
    colour = np.asarray(GRAY if background.colour == "gray" else COLOURS[background.colour], np.float32)
    if background.kind == "plain":
        weight = np.ones((CANVAS, CANVAS), np.float32)
    elif background.kind == "gradient":
        weight = np.repeat(np.linspace(1, 0.15, CANVAS, dtype=np.float32)[:, None], CANVAS, axis=1)
    else:
        stripes = (np.arange(CANVAS) // 32 % 2 == 0).astype(np.float32)
        weight = np.repeat(stripes[:, None], CANVAS, axis=1)
        weight = weight if background.kind == "horizontal" else weight.T
    return weight[..., None] * colour + (1 - weight[..., None]) * np.float32(255)


def render(scene: Scene, rng: np.random.Generator, placements: list[Placement] | None = None) -> np.ndarray:
    """Return a picture of the scene, uint8 [256, 256, 3], with items at `placements` or at random positions."""
    canvas = paint_background(scene.background)
    placements = arrange(scene, rng) if placements is None else placements
    # An inner item comes first in the scene and is painted last.
    for item, spot in reversed(list(zip(scene.items, placements, strict=True))):
        reach = spot.radius * 1.08 + 2
        x0, x1 = max(0, int(spot.x - reach)), min(CANVAS, int(spot.x + reach) + 1)
        y0, y1 = max(0, int(spot.y - reach)), min(CANVAS, int(spot.y + reach) + 1)
        x = (np.arange(x0, x1) + 0.5 - spot.x) / spot.radius
        y = (np.arange(y0, y1) + 0.5 - spot.y) / spot.radius
        xs, ys = np.meshgrid(x, y)
        alpha = coverage(item.shape, xs, ys, 1 / spot.radius).astype(np.float32)[..., None]
        window = canvas[y0:y1, x0:x1]
        canvas[y0:y1, x0:x1] = alpha * np.asarray(COLOURS[item.colour], np.float32) + (1 - alpha) * window
    return np.round(canvas).astype(np.uint8)
