"""Where a prompt's visual tokens lie: among the text, and on the pictures' grids."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from infoprune_rt.baselines.decoder import Frames
from infoprune_rt.errors import InfopruneError

_BAND = 2  # grid rows of queries that are computed together; on CPUs the fastest, from 17 x 23 to 55 x 55 tokens


@dataclass(frozen=True)
class VisualLayout:
    """One prompt.

    visual, text: the places of its tokens, ascending int64, [Tv] and [Tt]. frames: rows and columns of every picture
    or video frame, whose tokens follow each other row by row among the visual ones; empty where no window asks.
    """

    visual: Tensor
    text: Tensor
    frames: Frames = ()

    @classmethod
    def of(cls, is_visual: Tensor, frames: Frames = ()) -> VisualLayout:
        """From a bool per token, [T]."""
        visual = is_visual.nonzero()[:, 0]
        if frames and sum(rows * columns for rows, columns in frames) != len(visual):
            raise InfopruneError(f"grids of {frames} do not hold {len(visual)} visual tokens; give each picture's")
        return cls(visual, (~is_visual).nonzero()[:, 0], frames)

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.visual) + len(self.text)


@dataclass(frozen=True)
class Band:
    """Some grid rows of one picture whose windows are computed together.

    queries, keys: ranges among the visual tokens; the keys are all rows within reach. text_keys: that many text tokens,
    the first ones, may be seen. allowed: [queries, text_keys + keys] bool.
    """

    queries: slice
    keys: slice
    text_keys: int
    allowed: Tensor


def window(layout: VisualLayout, radius: int) -> Tensor:
    """[Tv, Tv] bool: the visual keys a visual query sees, those of its own frame at most r rows and columns away."""
    places = torch.cat([_places(i, *frame) for i, frame in enumerate(layout.frames)]).to(layout.visual.device)
    near = torch.ones(len(places), len(places), dtype=torch.bool, device=places.device)
    for place, reach in zip(places.unbind(dim=1), (0, radius, radius), strict=True):
        near &= (place[:, None] - place).abs() <= reach
    return near


def bands(layout: VisualLayout, radius: int) -> list[Band]:
    """The same windows, cut into bands of grid rows: a band's keys are one run of tokens, so nothing is gathered."""
    found, start = [], 0
    for rows, columns in layout.frames:
        places = _places(0, rows, columns).to(layout.visual.device)[:, 1:]
        for top in range(0, rows, _BAND):
            bottom = min(top + _BAND, rows)
            queries = slice(top * columns, bottom * columns)
            keys = slice(max(0, top - radius) * columns, min(rows, bottom + radius) * columns)
            near = ((places[queries, None] - places[None, keys]).abs() <= radius).all(dim=-1)
            queries, keys = (slice(start + part.start, start + part.stop) for part in (queries, keys))
            before = layout.text[None] < layout.visual[queries, None]
            text_keys = int(before.any(dim=0).sum())
            found.append(Band(queries, keys, text_keys, torch.cat([before[:, :text_keys], near], dim=1)))
        start += rows * columns
    return found


def _places(frame: int, rows: int, columns: int) -> Tensor:
    """[rows * columns, 3]: frame, row and column of every token."""
    return torch.cartesian_prod(torch.tensor([frame]), torch.arange(rows), torch.arange(columns))
