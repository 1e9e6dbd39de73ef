"""Reading images that may be broken, huge or missing."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.towers.base import TowerAdapter

MAX_PIXELS = 178_956_970  # PIL's own limit, kept where a program has lifted PIL's; decoded, 3 bytes a pixel
MAX_ASPECT_RATIO = 200  # Qwen2-VL's image processor refuses anything thinner
OnCorrupt = Literal["refuse", "skip"]


def read_image(path: Path) -> Image.Image:
    """Decode one image as RGB, after a look at its size. Raises InfopruneError naming the file."""
    with _opened(path) as image:
        return image.convert("RGB")


def image_size(path: Path) -> tuple[int, int]:
    """Width and height, by the file's header alone. Raises InfopruneError naming the file."""
    with _opened(path) as image:
        return image.size


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size is judged below
            with Image.open(path) as image:
                _refuse_size(path, *image.size)
                yield image
    except InfopruneError:
        raise
    except FileNotFoundError as error:
        raise InfopruneError(f"there is no image {path}; check the image folder") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InfopruneError(
            f"the image {path} can't be decoded ({error}); replace it or skip corrupt images"
        ) from error


def _refuse_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _too_large(path)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise InfopruneError(
            f"the image {path} ({width} x {height}) is more than {MAX_ASPECT_RATIO} times as long as wide"
        )


def _too_large(path: Path) -> InfopruneError:
    return InfopruneError(f"the image {path} has more than {MAX_PIXELS} pixels, too many to decode; shrink it")


class ImageSource:
    """Reads images by path; a corrupt one is refused (raises) or skipped (returns None and remembers it)."""

    def __init__(self, on_corrupt: OnCorrupt = "refuse") -> None:
        if on_corrupt not in ("refuse", "skip"):
            raise InfopruneError(f'corrupt images can be met with "refuse" or "skip", not {on_corrupt!r}')
        self.on_corrupt = on_corrupt
        self._skipped: dict[Path, str] = {}

    @property
    def skipped(self) -> dict[Path, str]:
        """Every image skipped so far, and why; one that is met twice counts once."""
        return dict(self._skipped)

    def read(self, path: Path) -> Image.Image | None:
        """The image, or None if it is corrupt and to be skipped."""
        try:
            return read_image(path)
        except InfopruneError as error:
            if self.on_corrupt == "refuse":
                raise
            self._skipped[Path(path)] = str(error)
            return None

    def read_all(self, paths: Sequence[Path]) -> Iterator[Image.Image]:
        """The readable images among the paths, in order."""
        return (image for path in paths if (image := self.read(path)) is not None)


class ImageProcessor(Protocol):
    """transformers' image processors, as far as they are used here."""

    def __call__(self, images: list[Image.Image], *, return_tensors: str) -> dict[str, Tensor]: ...


class TowerBatches:
    """Calibration images as a tower's inputs: a stream that can be walked again and holds one batch at a time."""

    def __init__(
        self,
        paths: Sequence[Path],
        image_processor: ImageProcessor,
        adapter: TowerAdapter,
        batch_size: int,
        source: ImageSource,
    ) -> None:
        self.paths, self.batch_size, self.source = list(paths), batch_size, source
        self._image_processor, self._adapter = image_processor, adapter

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        images: list[Image.Image] = []
        delivered = False
        for image in self.source.read_all(self.paths):
            images.append(image)
            if len(images) == self.batch_size:
                yield self._inputs(images)
                images, delivered = [], True
        if images:
            yield self._inputs(images)
        elif not delivered:
            raise InfopruneError(f"none of the {len(self.paths)} calibration images can be read; give readable images")

    def _inputs(self, images: list[Image.Image]) -> dict[str, Tensor]:
        return self._adapter.tower_inputs(self._image_processor(images, return_tensors="pt"))


def tower_batches(
    paths: Sequence[Path],
    image_processor: ImageProcessor,
    adapter: TowerAdapter,
    batch_size: int,
    on_corrupt: OnCorrupt = "refuse",
) -> TowerBatches:
    """Re-iterable batches of tower inputs; ``.source.skipped`` names the corrupt images that were left out."""
    if not paths:
        raise InfopruneError("there are no calibration images; give at least one")
    if batch_size < 1:
        raise InfopruneError(f"the batch size must be at least 1, not {batch_size}")
    return TowerBatches(paths, image_processor, adapter, batch_size, ImageSource(on_corrupt))
