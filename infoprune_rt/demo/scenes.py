"""Handwriting VQA: scenes of real handwritten digits, and questions about them in three families.

The digits are scikit-learn's (UCI optical recognition, 8 x 8, real handwriting); 1400 of them, drawn
once by a fixed seed, serve training and the other 397 testing: no test digit is seen in training. A scene is
112 x 112 pixels: coloured digits on a dark ground, and on some scenes a pale sign with a number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from infoprune_rt.evaluation.dataset import Family

SIZE = 112
TRAIN_DIGITS = 1400
CROWD = 12
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 45, 45),
    "green": (50, 185, 60),
    "blue": (60, 95, 245),
    "yellow": (240, 220, 50),
    "orange": (245, 140, 30),
    "purple": (165, 65, 205),
    "cyan": (60, 215, 220),
    "white": (240, 240, 240),
}
INK = "ink"  # the colour of a sign's digits: dark, and never asked for

Split = Literal["train", "test"]
FloatImage = NDArray[np.float32]


@dataclass(frozen=True)
class Digit:
    """One digit as drawn. x and y are its centre in pixels, x to the right and y down."""

    value: int
    color: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Scene:
    """The loose coloured digits, and the sign's digits from left to right (empty: no sign)."""

    digits: tuple[Digit, ...]
    sign: tuple[Digit, ...]

    @property
    def number(self) -> str:
        """What the sign reads."""
        return "".join(str(digit.value) for digit in self.sign)


@dataclass(frozen=True)
class Question:
    """A question with its one right answer."""

    family: Family
    kind: str
    text: str
    answer: str


@lru_cache(maxsize=2)
def handwriting(split: Split) -> tuple[FloatImage, NDArray[np.int64]]:
    """Digit images (n x 10 x 10, in 0..1, with an empty rim) and their values, for one side of the split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    part = order[:TRAIN_DIGITS] if split == "train" else order[TRAIN_DIGITS:]
    images = np.pad(data.images[part] / 16, ((0, 0), (1, 1), (1, 1))).astype(np.float32)
    return images, data.target[part].astype(np.int64)


def draw_scene(rng: np.random.Generator, split: Split, crowded: bool = False) -> tuple[NDArray[np.uint8], Scene]:
    """One random scene: its picture (112 x 112 x 3, uint8) and what is in it.

    ``crowded`` puts in as many loose digits as find a place, for learning to read, not to answer.
    """
    images, values = handwriting(split)
    canvas = _ground(rng)
    boxes: list[tuple[float, float, float, float]] = []
    sign: list[Digit] = []
    if rng.random() < 0.4:
        sign = _draw_sign(rng, canvas, boxes, images, values)
        count = int(rng.integers(1, 4))
    else:
        count = int(rng.integers(2, 7))
    digits = _draw_loose(rng, canvas, boxes, CROWD if crowded else count, images, values)
    canvas += rng.integers(-6, 7, size=canvas.shape, dtype=np.int8)
    picture = np.clip(canvas, 0, 255, out=canvas).astype(np.uint8)
    return picture, Scene(tuple(digits), tuple(sign))


def _ground(rng: np.random.Generator) -> FloatImage:
    tint = rng.uniform(10, 60, size=3).astype(np.float32)
    slope = rng.uniform(-12, 12, size=(2, 3)).astype(np.float32)
    ramp = np.linspace(-1, 1, SIZE, dtype=np.float32)
    ground: FloatImage = tint + ramp[:, None, None] * slope[0] + ramp[None, :, None] * slope[1]
    return ground


def _draw_sign(
    rng: np.random.Generator,
    canvas: FloatImage,
    boxes: list[tuple[float, float, float, float]],
    images: FloatImage,
    values: NDArray[np.int64],
) -> list[Digit]:
    length = int(rng.integers(2, 4))
    size = float(rng.uniform(26, 30))
    pitch = size * 0.82
    width, height = pitch * length + 8, size + 8
    left = float(rng.uniform(1, SIZE - width - 1))
    top = float(rng.uniform(1, SIZE - height - 1))
    plate = rng.uniform(175, 225) + rng.uniform(-15, 15, size=3)
    canvas[int(top) : int(top + height), int(left) : int(left + width)] = plate
    boxes.append((left, top, left + width, top + height))
    ink = rng.uniform(0, 45, size=3).astype(np.float32)
    sign = []
    for i in range(length):
        x, y = left + 4 + pitch * (i + 0.5), top + height / 2
        value = _stamp(rng, canvas, x, y, size, ink, images, values)
        sign.append(Digit(value, INK, x, y, size))
    return sign


def _draw_loose(
    rng: np.random.Generator,
    canvas: FloatImage,
    boxes: list[tuple[float, float, float, float]],
    count: int,
    images: FloatImage,
    values: NDArray[np.int64],
) -> list[Digit]:
    names = [str(name) for name in rng.permutation(list(COLORS) * 2 if count == CROWD else list(COLORS))][:count]
    if count > 1 and rng.random() < 0.35:
        names[-1] = names[0]
    digits = []
    for name in names:
        size = float(rng.uniform(26, 33))
        place = _free_place(rng, boxes, size)
        if place is None:
            continue
        x, y = place
        color = (np.array(COLORS[name]) + rng.uniform(-14, 14, size=3)).astype(np.float32)
        value = _stamp(rng, canvas, x, y, size, color, images, values)
        digits.append(Digit(value, name, x, y, size))
    return digits


def _free_place(
    rng: np.random.Generator, boxes: list[tuple[float, float, float, float]], size: float
) -> tuple[float, float] | None:
    half = size / 2
    for _ in range(40):
        x, y = rng.uniform(half, SIZE - half, size=2)
        inner = half * 0.86  # the corners of a digit's square are empty, so squares may touch
        box = (x - inner, y - inner, x + inner, y + inner)
        if all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in boxes):
            boxes.append(box)
            return float(x), float(y)
    return None


def _stamp(
    rng: np.random.Generator,
    canvas: FloatImage,
    x: float,
    y: float,
    size: float,
    color: NDArray[np.float32],
    images: FloatImage,
    values: NDArray[np.int64],
) -> int:
    """Draw one random digit, enlarged to ``size`` and turned by up to 8 degrees; its value."""
    index = int(rng.integers(len(images)))
    angle = math.radians(rng.uniform(-8, 8))
    reach = size * 0.6
    x0, x1 = max(0, int(x - reach)), min(SIZE, int(x + reach) + 1)
    y0, y1 = max(0, int(y - reach)), min(SIZE, int(y + reach) + 1)
    dx = (np.arange(x0, x1, dtype=np.float32) + 0.5 - x)[None, :]
    dy = (np.arange(y0, y1, dtype=np.float32) + 0.5 - y)[:, None]
    scale, sin, cos = 8 / size, math.sin(angle), math.cos(angle)
    # Source coordinates in the 10 x 10 image; its rim makes everything outside the digit empty.
    u = np.clip((cos * dx + sin * dy) * scale + 4.5, 0, 8.999)
    v = np.clip((cos * dy - sin * dx) * scale + 4.5, 0, 8.999)
    source = images[index]
    iu, iv = u.astype(np.int32), v.astype(np.int32)
    fu, fv = u - iu, v - iv
    top = source[iv, iu] * (1 - fu) + source[iv, iu + 1] * fu
    bottom = source[iv + 1, iu] * (1 - fu) + source[iv + 1, iu + 1] * fu
    alpha = np.clip((top * (1 - fv) + bottom * fv) * 1.3, 0, 1)[:, :, None]
    canvas[y0:y1, x0:x1] += alpha * (color - canvas[y0:y1, x0:x1])
    return int(values[index])


def ask(rng: np.random.Generator, scene: Scene, count: int = 8) -> list[Question]:
    """``count`` different questions about a scene; families alternate as far as the scene allows."""
    asked: dict[str, Question] = {}
    families: list[Family] = [name for name in _MAKERS if scene.sign or name != "text"]
    for turn in range(count * 12):
        family = families[turn % len(families)]
        maker = _MAKERS[family][int(rng.integers(len(_MAKERS[family])))]
        question = maker(rng, scene)
        if question is not None:
            asked.setdefault(question.text, question)
        if len(asked) == count:
            break
    return list(asked.values())


def _pick(rng: np.random.Generator, items: list[str]) -> str:
    return items[int(rng.integers(len(items)))]


def _unique(scene: Scene, attribute: Callable[[Digit], object]) -> list[Digit]:
    seen = [attribute(digit) for digit in scene.digits]
    return [digit for digit in scene.digits if seen.count(attribute(digit)) == 1]


def _names(scene: Scene) -> list[tuple[str, Digit]]:
    """Every unambiguous way to point at a loose digit."""
    by_color = [(f"{digit.color} digit", digit) for digit in _unique(scene, lambda d: d.color)]
    by_value = [(str(digit.value), digit) for digit in _unique(scene, lambda d: d.value)]
    return by_color + by_value


def _what_digit(rng: np.random.Generator, scene: Scene) -> Question | None:
    choices = _unique(scene, lambda d: d.color)
    if not choices:
        return None
    digit = choices[int(rng.integers(len(choices)))]
    return Question("vqa", "what digit", f"What digit is {digit.color}?", str(digit.value))


def _which_color(rng: np.random.Generator, scene: Scene) -> Question | None:
    choices = _unique(scene, lambda d: d.value)
    if not choices:
        return None
    digit = choices[int(rng.integers(len(choices)))]
    return Question("vqa", "which color", f"What color is the {digit.value}?", digit.color)


def _how_many(rng: np.random.Generator, scene: Scene) -> Question | None:
    return Question("vqa", "how many", "How many colored digits are there?", str(len(scene.digits)))


def _yes_no(rng: np.random.Generator, present: set[str], pool: list[str]) -> tuple[str, str]:
    """Something from the pool, present or absent with equal chance, and whether it is present."""
    absent = [item for item in pool if item not in present]
    if rng.random() < 0.5:
        return _pick(rng, sorted(present)), "yes"
    return _pick(rng, absent), "no"


def _is_there_color(rng: np.random.Generator, scene: Scene) -> Question | None:
    color, answer = _yes_no(rng, {d.color for d in scene.digits}, list(COLORS))
    return Question("vqa", "is there", f"Is there a {color} digit?", answer)


def _is_there_value(rng: np.random.Generator, scene: Scene) -> Question | None:
    value, answer = _yes_no(rng, {str(d.value) for d in scene.digits}, [str(v) for v in range(10)])
    return Question("vqa", "is there", f"Is there a colored {value}?", answer)


def _read_number(rng: np.random.Generator, scene: Scene) -> Question | None:
    return Question("text", "read number", "What number is written on the sign?", scene.number)


def _read_digit(rng: np.random.Generator, scene: Scene) -> Question | None:
    which, index = (("first", 0), ("last", -1))[int(rng.integers(2))]
    return Question("text", "read digit", f"What is the {which} digit on the sign?", scene.number[index])


MARGIN = 6.0  # pixels by which two centres must differ before a question about their order is fair


def _side_of(rng: np.random.Generator, scene: Scene) -> Question | None:
    names = _names(scene)
    if len(names) < 2:
        return None
    first, second = (names[int(i)] for i in rng.choice(len(names), size=2, replace=False))
    word, axis, sign = (
        ("to the left of", "x", 1),
        ("to the right of", "x", -1),
        ("above", "y", 1),
        ("below", "y", -1),
    )[int(rng.integers(4))]
    gap = sign * (getattr(second[1], axis) - getattr(first[1], axis))
    if first[1] is second[1] or abs(gap) < MARGIN:
        return None
    return Question("relations", "side", f"Is the {first[0]} {word} the {second[0]}?", "yes" if gap > 0 else "no")


def _same_color(rng: np.random.Generator, scene: Scene) -> Question | None:
    choices = _unique(scene, lambda d: d.value)
    pairs = [(a, b) for a in choices for b in choices if a is not b]
    same = [pair for pair in pairs if pair[0].color == pair[1].color]
    if not pairs:
        return None
    pool = same if same and rng.random() < 0.5 else pairs
    a, b = pool[int(rng.integers(len(pool)))]
    answer = "yes" if a.color == b.color else "no"
    return Question("relations", "same color", f"Is the {a.value} the same color as the {b.value}?", answer)


def _extreme(rng: np.random.Generator, scene: Scene) -> Question | None:
    word, axis, sign = (("leftmost", "x", 1), ("rightmost", "x", -1), ("topmost", "y", 1), ("bottommost", "y", -1))[
        int(rng.integers(4))
    ]
    order = sorted(scene.digits, key=lambda d: sign * getattr(d, axis))
    if len(order) < 2 or abs(getattr(order[1], axis) - getattr(order[0], axis)) < MARGIN:
        return None
    if rng.random() < 0.5:
        return Question("relations", "extreme", f"What color is the {word} digit?", order[0].color)
    return Question("relations", "extreme", f"What is the {word} colored digit?", str(order[0].value))


Maker = Callable[[np.random.Generator, Scene], Question | None]
_MAKERS: dict[Family, list[Maker]] = {
    "vqa": [_what_digit, _which_color, _how_many, _is_there_color, _is_there_value],
    "relations": [_side_of, _side_of, _same_color, _extreme],
    "text": [_read_number, _read_digit],
}
