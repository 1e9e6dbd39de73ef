"""Rotary tables of packs that were met before: kept on their device, up to a number of bytes."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock

import torch
from torch import Tensor

from infoprune_rt.errors import InfopruneError

Tables = tuple[Tensor, Tensor]


class RotaryCache:
    """cos and sin by what they were computed from; those that were not asked for the longest go first.

    max_bytes: what all of them together may take; larger ones are made anew each time. Those that a graph of somebody
    else's has captured do not count, and stay.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Tables] = OrderedDict()
        self._captured: dict[Hashable, Tables] = {}
        self._lock = Lock()
        if hasattr(os, "register_at_fork"):  # a child has none of the threads that might hold it
            os.register_at_fork(after_in_child=lambda: setattr(self, "_lock", Lock()))

    @property
    def bytes(self) -> int:
        """What is kept now."""
        return sum(map(_bytes, self._kept.values()))

    def get(self, key: Hashable, make: Callable[[], Tables]) -> Tables:
        """The tables of the key, made if they are not kept."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return self._for_a_graph(key, found)
        if found is None:
            with torch.inference_mode(False):  # the next caller may be outside of it
                found = make()
            if found[0].is_cuda:  # whichever stream asks next finds them there
                torch.cuda.current_stream(found[0].device).synchronize()
            self._keep(key, found)
        if found[0].is_cuda:  # they may be let go while another stream still reads them
            for table in found:
                table.record_stream(torch.cuda.current_stream(table.device))
        return found

    def _for_a_graph(self, key: Hashable, found: Tables | None) -> Tables:
        """Somebody's graph reads them whenever it replays, so that they stay for good."""
        if found is None:
            raise InfopruneError("run this pack once before its launches are captured: its rotary tables are not there")
        self._captured[key] = found
        return found

    def _keep(self, key: Hashable, tables: Tables) -> None:
        if _bytes(tables) > self.max_bytes:
            return
        with self._lock:
            self._kept[key] = tables
            while self.bytes > self.max_bytes:
                self._kept.popitem(last=False)

    def clear(self) -> None:
        """Let all of them go."""
        with self._lock:
            self._kept.clear()


def _bytes(tables: Tables) -> int:
    return sum(table.nbytes for table in tables)
