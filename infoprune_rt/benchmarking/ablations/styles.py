"""Other looks for the same pictures: what is asked stays answerable, what the tower sees shifts.

The styles work on any picture, so that real data can be shifted as the scenes are; a data set and its restyled one
have the same questions about the same contents and are compared in pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.images import read_image
from infoprune_rt.files import new_directory

PLAIN = "plain"
Pixels = NDArray[np.float32]  # height x width x 3, in 0..255
NOISE = 50.0  # standard deviation, of 255


def noisy(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian noise on every pixel and channel."""
    return picture + rng.standard_normal(picture.shape, dtype=np.float32) * NOISE


def faded(picture: Pixels, rng: np.random.Generator) -> Pixels:
    """Towards a tinted pale grey: less contrast, and no dark ground."""
    return 0.7 * picture + rng.uniform(45, 75, size=3).astype(np.float32)


STYLES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {"noisy": noisy, "faded": faded}


def restyled(dataset: VQADataset, style: str, directory: Path) -> VQADataset:
    """The same questions about pictures redrawn into ``directory`` (kept if it is there already) as PNG.

    What is random about a style depends on the picture's name alone.
    """
    if style == PLAIN:
        return dataset
    names = {path: f"{i:06d}-{path.stem}.png" for i, path in enumerate(dataset.image_paths)}
    if not directory.exists():
        with new_directory(directory) as aside:
            for path, name in names.items():
                _restyle(read_image(path), style, path.name).save(aside / name)
    return VQADataset([replace(example, image_path=directory / names[example.image_path]) for example in dataset])


def _restyle(image: Image.Image, style: str, name: str) -> Image.Image:
    seed = int.from_bytes(hashlib.sha256(f"{style} {name}".encode()).digest()[:8])
    pixels = np.asarray(image, dtype=np.float32)
    return Image.fromarray(_bytes(STYLES[style](pixels, np.random.default_rng(seed))))


def _bytes(picture: Pixels) -> NDArray[np.uint8]:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
