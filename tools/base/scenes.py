"""Simple painted backgrounds: grass, snow, beach, ... each a small numpy function of a random generator.

A scene is a float32 picture [S, S, 3] in 0..1. They are painted once at the start of a run (`paint_scenes`) and
cropped, mirrored and reused from then on, so their cost does not matter and plain numpy keeps them readable.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

Painter = Callable[[np.random.Generator, int], np.ndarray]


def noise(rng: np.random.Generator, size: int, rows: int, columns: int) -> np.ndarray:
    """Smooth noise [S, S] in 0..1 with about `rows` x `columns` bumps."""
    coarse = Image.fromarray(rng.random((max(rows, 2), max(columns, 2)), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)).clip(0, 1)


def mix(a: np.ndarray, b: np.ndarray, amount: np.ndarray | float) -> np.ndarray:
    """`a` where amount is 0, `b` where it is 1; amount is a number, [S, S] or [S, 1]."""
    amount = np.asarray(amount, dtype=np.float32)
    return a + (b - a) * (amount[..., None] if amount.ndim else amount)


def colour(rng: np.random.Generator, r: int, g: int, b: int, jitter: int = 12) -> np.ndarray:
    """One sRGB colour [3] in 0..1, moved a little."""
    return (np.array([r, g, b]) + rng.uniform(-jitter, jitter, 3)).clip(0, 255).astype(np.float32) / 255


def vertical(top: np.ndarray, bottom: np.ndarray, size: int) -> np.ndarray:
    """A picture [S, S, 3] that fades from `top` to `bottom`."""
    fade = np.linspace(0, 1, size, dtype=np.float32)[:, None] * np.ones((1, size), dtype=np.float32)
    return mix(np.broadcast_to(top, (size, size, 3)), np.broadcast_to(bottom, (size, size, 3)), fade)


def rows(size: int) -> np.ndarray:
    """The height of every pixel [S, 1], 0 at the top and 1 at the bottom."""
    return np.linspace(0, 1, size, dtype=np.float32)[:, None]


def hills(rng: np.random.Generator, size: int, height: float, wave: float) -> np.ndarray:
    """Soft mask [S, S]: 1 below a wavy horizon at `height`."""
    x = np.linspace(0, 1, size, dtype=np.float32)
    line = height + wave * np.sin(x * rng.uniform(3, 9) + rng.uniform(0, 6.3))
    return ((rows(size) - line[None]) * size / 1.5).clip(0, 1)


def dots(rng: np.random.Generator, size: int, count: int, radius: tuple[float, float]) -> np.ndarray:
    """Soft round spots as a mask [S, S]."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    mask = np.zeros((size, size), dtype=np.float32)
    for _ in range(count):
        cx, cy, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(*radius)
        mask = np.maximum(mask, (r + 0.7 - np.hypot(x - cx, y - cy)).clip(0, 1) * rng.uniform(0.5, 1))
    return mask


def sky(rng: np.random.Generator, size: int) -> np.ndarray:
    picture = vertical(colour(rng, 95, 170, 235), colour(rng, 205, 232, 250), size)
    clouds = (noise(rng, size, 6, 4) - 0.55).clip(0, 1) * rng.uniform(0, 2.5)
    return mix(picture, np.ones(3, np.float32), clouds.clip(0, 0.9))


def grass(rng: np.random.Generator, size: int) -> np.ndarray:
    ground = vertical(colour(rng, 120, 190, 80), colour(rng, 60, 140, 50), size)
    ground = ground * (0.85 + 0.3 * noise(rng, size, size // 4, size // 2)[..., None])
    far = mix(sky(rng, size), colour(rng, 90, 165, 85), hills(rng, size, rng.uniform(0.3, 0.45), 0.05))
    return mix(far, ground, hills(rng, size, rng.uniform(0.42, 0.62), 0.03))


def snow(rng: np.random.Generator, size: int) -> np.ndarray:
    ground = vertical(colour(rng, 240, 245, 252, 5), colour(rng, 215, 226, 242, 6), size)
    ground = ground * (0.95 + 0.07 * noise(rng, size, 12, 6)[..., None])
    far = vertical(colour(rng, 150, 175, 205), colour(rng, 205, 218, 232), size)
    picture = mix(far, ground, hills(rng, size, rng.uniform(0.4, 0.6), 0.04))
    return mix(picture, np.ones(3, np.float32), dots(rng, size, 45, (0.3, 1.6)))


def beach(rng: np.random.Generator, size: int) -> np.ndarray:
    sea = vertical(colour(rng, 40, 130, 190), colour(rng, 90, 200, 215), size)
    sea = sea * (0.93 + 0.14 * noise(rng, size, size // 3, 6)[..., None])
    sand = vertical(colour(rng, 240, 218, 165), colour(rng, 225, 190, 130), size)
    sand = sand * (0.93 + 0.14 * noise(rng, size, size // 2, size // 2)[..., None])
    horizon = rng.uniform(0.28, 0.42)
    picture = mix(sky(rng, size), sea, hills(rng, size, horizon, 0.0))
    shore = horizon + rng.uniform(0.12, 0.25)
    picture = mix(picture, np.ones(3, np.float32), hills(rng, size, shore - 0.02, 0.02) * 0.8)
    return mix(picture, sand, hills(rng, size, shore, 0.02))


def night_sky(rng: np.random.Generator, size: int) -> np.ndarray:
    picture = vertical(colour(rng, 10, 12, 40, 8), colour(rng, 55, 45, 105), size)
    picture = mix(picture, colour(rng, 90, 60, 140), (noise(rng, size, 4, 4) - 0.5).clip(0, 1) * 0.8)
    picture = mix(picture, colour(rng, 255, 250, 225, 5), dots(rng, size, 55, (0.1, 1.1)))
    return mix(picture, colour(rng, 18, 22, 38, 8), hills(rng, size, rng.uniform(0.78, 0.9), 0.04))


def wooden_table(rng: np.random.Generator, size: int) -> np.ndarray:
    wood = np.broadcast_to(colour(rng, 170, 110, 62), (size, size, 3))
    wood = wood * (0.8 + 0.35 * noise(rng, size, size // 2, 4)[..., None])
    plank = (rows(size) * rng.integers(7, 11) % 1.0) * np.ones((1, size), np.float32)
    wood = mix(wood, colour(rng, 85, 50, 25), (plank < 0.06) * 0.7)
    wall = colour(rng, *rng.choice([[222, 214, 200], [170, 190, 195], [205, 180, 170], [120, 130, 140]]))
    wall = np.broadcast_to(wall, (size, size, 3)) * (0.9 + 0.15 * noise(rng, size, 3, 3)[..., None])
    return mix(wall, wood, hills(rng, size, rng.uniform(0.35, 0.55), 0.0))


def desert(rng: np.random.Generator, size: int) -> np.ndarray:
    picture = vertical(colour(rng, 110, 180, 230), colour(rng, 250, 225, 180), size)
    for height in (0.42, 0.55, 0.7):
        dune = vertical(colour(rng, 238, 178, 100), colour(rng, 205, 135, 65), size)
        picture = mix(
            picture, dune * rng.uniform(0.92, 1.05), hills(rng, size, height + rng.uniform(-0.05, 0.05), 0.06)
        )
    return picture


def forest(rng: np.random.Generator, size: int) -> np.ndarray:
    picture = vertical(colour(rng, 60, 110, 65), colour(rng, 130, 165, 95), size)
    picture = picture * (0.75 + 0.5 * noise(rng, size, 20, 20)[..., None])
    x = np.linspace(0, 1, size, dtype=np.float32)[None]
    for _ in range(rng.integers(5, 9)):
        centre, width = rng.uniform(0, 1), rng.uniform(0.015, 0.05)
        trunk = ((width - np.abs(x - centre)) * size / 1.5).clip(0, 1) * np.ones((size, 1), np.float32)
        picture = mix(picture, colour(rng, 80, 55, 38) * rng.uniform(0.7, 1.2), trunk)
    leaves = (rows(size) < 0.28) * noise(rng, size, 16, 16)
    picture = mix(picture, colour(rng, 35, 85, 45), (leaves * 1.6).clip(0, 1))
    floor = np.broadcast_to(colour(rng, 75, 105, 50), (size, size, 3))
    floor = floor * (0.7 + 0.6 * noise(rng, size, size // 4, size // 4)[..., None])
    return mix(picture, floor, hills(rng, size, rng.uniform(0.66, 0.8), 0.02))


def under_water(rng: np.random.Generator, size: int) -> np.ndarray:
    picture = vertical(colour(rng, 90, 205, 230), colour(rng, 10, 60, 130), size)
    x = np.linspace(0, 1, size, dtype=np.float32)[None]
    rays = (np.sin((x + rows(size) * rng.uniform(-0.5, 0.5)) * rng.uniform(14, 26)) - 0.3).clip(0, 1) * (1 - rows(size))
    picture = mix(picture, np.ones(3, np.float32), rays * 0.35)
    picture = mix(picture, colour(rng, 200, 240, 250), dots(rng, size, 18, (0.8, 3.5)) * 0.5)
    return mix(picture, colour(rng, 205, 190, 140) * 0.75, hills(rng, size, rng.uniform(0.84, 0.95), 0.03))


def brick_wall(rng: np.random.Generator, size: int) -> np.ndarray:
    count, y = int(rng.integers(8, 12)), rows(size)
    x = np.linspace(0, 1, size, dtype=np.float32)[None]
    course = np.floor(y * count).astype(int)
    along = x * count / 2 + 0.5 * (course % 2)
    tone = rng.uniform(0.78, 1.15, (count + 1, count + 2))[
        course.clip(0, count), np.floor(along).astype(int).clip(0, count + 1)
    ]
    mortar = ((y * count % 1.0) < 0.12) | ((along % 1.0) < 0.06)
    wall = colour(rng, 176, 84, 66) * tone[..., None].astype(np.float32)
    wall = mix(wall, colour(rng, 200, 190, 180), mortar.astype(np.float32) * 0.9)
    floor = np.broadcast_to(colour(rng, 125, 122, 120), (size, size, 3)) * (
        0.92 + 0.1 * noise(rng, size, 40, 40)[..., None]
    )
    return mix(wall, floor, hills(rng, size, rng.uniform(0.8, 0.95), 0.0))


def room(rng: np.random.Generator, size: int) -> np.ndarray:
    wall = colour(rng, *rng.choice([[235, 220, 190], [190, 215, 205], [205, 205, 230], [240, 205, 200]]))
    picture = np.broadcast_to(wall, (size, size, 3)) * (1.02 - 0.12 * rows(size)[..., None])
    y, x = rows(size), np.linspace(0, 1, size, dtype=np.float32)[None]
    left, top = rng.uniform(0.05, 0.65), rng.uniform(0.08, 0.15)
    pane = (x > left) & (x < left + 0.28) & (y > top) & (y < top + 0.3)
    glass = (
        (x > left + 0.02) & (x < left + 0.26) & (y > top + 0.02) & (y < top + 0.28) & (np.abs(x - left - 0.14) > 0.008)
    )
    picture = mix(picture, colour(rng, 250, 250, 248, 4), pane.astype(np.float32))
    picture = mix(picture, colour(rng, 150, 205, 240), glass.astype(np.float32))
    floor = colour(rng, 150, 105, 75) * (0.85 + 0.25 * noise(rng, size, size // 3, 3)[..., None])
    edge = rng.uniform(0.62, 0.74)
    picture = mix(picture, colour(rng, 248, 246, 242, 4), hills(rng, size, edge - 0.03, 0.0))
    return mix(picture, floor, hills(rng, size, edge, 0.0))


PAINTERS: dict[str, Painter] = {
    "on grass": grass,
    "in the snow": snow,
    "on a beach": beach,
    "under a night sky": night_sky,
    "on a wooden table": wooden_table,
    "in a desert": desert,
    "in a forest": forest,
    "under water": under_water,
    "in front of a brick wall": brick_wall,
    "in a room": room,
}


def paint_scenes(scene: str, count: int, size: int, seed: int) -> np.ndarray:
    """`count` variants of one scene as uint8 [count, 3, size, size]; the same seed paints the same pictures."""
    pictures = []
    for index in range(count):
        rng = np.random.default_rng([seed, list(PAINTERS).index(scene), index])
        pictures.append((PAINTERS[scene](rng, size).clip(0, 1) * 255).round().astype(np.uint8).transpose(2, 0, 1))
    return np.stack(pictures)
