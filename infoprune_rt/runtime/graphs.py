"""A tower's blocks as CUDA graphs: captured once, at start-up, for a few sizes; replayed for any pack that fits one.

Launching a small pass kernel by kernel takes the host longer than the device; a graph is one launch. A replay reads its
pack and the weights where the capture did: writing to weights needs no new capture, replacing them does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops.triton_backend import DTYPES
from infoprune_rt.runtime.blocks import BlockStack
from infoprune_rt.runtime.buckets import BUDGETS, Bucket, room_for, smallest
from infoprune_rt.runtime.gpu_memory import graph_bytes, growth
from infoprune_rt.runtime.pack_buffers import PackBuffers
from infoprune_rt.runtime.seen_weights import SeenWeights
from infoprune_rt.towers.base import Stream

_TIMED = 5  # passes whose median is taken


@dataclass(frozen=True)
class _Captured:
    bucket: Bucket
    graph: torch.cuda.CUDAGraph
    out: Tensor


class CapturedGraphs:
    """The graphs of one tower's blocks.

    launch_ms: what the host takes to issue a pass without a graph. left_out: (tokens, why) of sizes that were not
    captured.
    """

    def __init__(self, blocks: BlockStack, rotary: bool, budgets: Sequence[int], max_bytes: int) -> None:
        self._blocks, self._rotary = blocks, rotary
        self._like = next(blocks.parameters())
        self._made_from = SeenWeights(blocks)
        self._lock = Lock()
        self._free = torch.cuda.Event()  # type: ignore[no-untyped-call]  # the buffers have been read, and the output has been copied
        self.left_out: list[tuple[int, str]] = []
        with torch.inference_mode(False), torch.no_grad(), torch.cuda.device(self._like.device):
            self._capture_within(sorted(set(budgets), reverse=True), max_bytes)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What can be replayed, the largest first."""
        return tuple(captured.bucket for captured in self._captured)

    @property
    def bytes(self) -> int:
        """Device memory of the buffers and of all graphs, beside what the driver keeps for the graphs themselves."""
        return self._buffers.bytes + graph_bytes().get(self._pool, 0)

    def are_of(self, blocks: BlockStack) -> bool:
        """Whether the weights still lie where the graphs read them."""
        return self._made_from.lie_in(blocks)

    @torch.no_grad()
    def replay(self, x: Tensor, stream: Stream) -> Tensor | None:
        """The blocks' output (T x d) by the smallest bucket that serves; None where none does, or x is of another kind.

        Any thread may call it, on any stream: the buffers are one, and who comes meanwhile waits for them.
        """
        if (x.dtype, x.device) != (self._like.dtype, self._like.device):
            return None
        work = self._work(stream.cu_seqlens)
        items = {block_m: len(found) for block_m, found in work.items()}
        bucket = smallest(self.buckets, len(x), items, self.launch_ms)
        if bucket is None:
            return None
        captured = next(each for each in self._captured if each.bucket is bucket)
        with self._lock, torch.cuda.device(x.device):
            torch.cuda.current_stream().wait_event(self._free)
            self._buffers.record_stream(torch.cuda.current_stream())
            self._buffers.load(x, {cut: work[cut] for cut in bucket.work_items}, stream.cos, stream.sin)
            captured.graph.replay()
            out = captured.out[: len(x)].clone()
            self._free.record()
        return out

    def _work(self, cu_seqlens: tuple[int, ...]) -> dict[int, Tensor]:
        from infoprune_kernels.work import work_on

        return {block_m: work_on(self._like.device, cu_seqlens, block_m) for block_m in self._buffers.work}

    def _room(self, tokens: int) -> dict[int, int]:
        """What a bucket has programs for, in each of the ways in which its layers, of so many heads, cut their work."""
        from infoprune_kernels import attention_tile

        layers: Any = list(self._blocks)
        like, head_dim = self._like, layers[0].head_dim
        heads = {layer.spec.num_heads for layer in layers} - {0}
        tiles = [attention_tile(like.device, like.dtype, tokens, count, head_dim)[0] for count in heads]
        return {tile.block_m: room_for(tokens, tile.block_m) for tile in tiles}

    def _capture_within(self, budgets: list[int], max_bytes: int) -> None:
        """Capture all budgets (the largest first) but those that do not fit into max_bytes."""
        while budgets:
            try:
                needed = self._prepare(budgets)
                if needed <= max_bytes:
                    self._capture_all(budgets)
                    needed = self.bytes  # what was taken in whole segments, rather than what was used of them
                if needed <= max_bytes:
                    return
                why = f"takes {needed / 2**20:.0f} MiB, {max_bytes / 2**20:.0f} are allowed"
            except torch.OutOfMemoryError:
                why = "takes more memory than the device has left"
            self.left_out.append((budgets[0], why))
            budgets = budgets[1:]
        smallest_budget, why = self.left_out[-1]
        raise InfopruneError(f"no graph can be captured: even one of {smallest_budget} patches {why}")

    def _prepare(self, budgets: list[int]) -> int:
        """Buffers for these budgets; bytes that buffers and the largest pass take. Compiles the kernels, too."""
        first: Any = self._blocks[0]
        self._captured: list[_Captured] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch keeps one, of the device that came first
        cuts = {block_m for tokens in budgets for block_m in self._room(tokens)}
        room = {block_m: room_for(budgets[0], block_m) for block_m in cuts}
        head_dim = first.head_dim if self._rotary else None
        self._buffers = PackBuffers(budgets[0], room, len(first.norm2.weight), head_dim, self._like)
        run = self._full_pass(budgets[0])
        run()
        return self._buffers.bytes + growth(run, self._like.device)

    def _capture_all(self, budgets: list[int]) -> None:
        """The largest first: the smaller ones find its memory in the pool."""
        run = self._full_pass(budgets[-1])
        run()
        self.launch_ms = statistics.median(_host_ms(run) for _ in range(_TIMED))
        self._captured = [self._capture(tokens) for tokens in budgets]

    def _capture(self, tokens: int) -> _Captured:
        run = self._full_pass(tokens)
        run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on doing what must not happen in a capture.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            out = run()
        graph.replay()
        replay_ms = statistics.median(_device_ms(graph.replay) for _ in range(_TIMED))
        return _Captured(Bucket(tokens, self._room(tokens), replay_ms), graph, out)

    def _full_pass(self, tokens: int) -> Callable[[], Tensor]:
        """A pass over one image that fills a bucket, the most that attention can have to do in it."""
        x = torch.randn_like(self._buffers.x[:tokens])
        room, work = self._room(tokens), self._work((0, tokens))
        self._buffers.load(x, {cut: work[cut] for cut in room}, None, None)
        return lambda: self._buffers.run(self._blocks, tokens, room)


def capture(blocks: BlockStack, *, rotary: bool, token_budgets: Sequence[int] | None, max_bytes: int) -> CapturedGraphs:
    """Capture a tower's blocks; ``CompactEncoder.capture_graphs`` describes the arguments.

    rotary: whether the tower gives them rotary tables.
    """
    first = next(blocks.parameters())
    if first.device.type != "cuda":
        raise InfopruneError(f"graphs are captured on a GPU, but the tower is on {first.device}; move it to one first")
    if first.dtype not in DTYPES:
        raise InfopruneError(f"graphs are captured in float16 or bfloat16, but the tower is {first.dtype}; convert it")
    budgets = BUDGETS if token_budgets is None else token_budgets
    wrong = [each for each in budgets if isinstance(each, bool) or not isinstance(each, int) or each < 1]
    if wrong or not budgets:
        told = f"{wrong[0]!r} is among them" if wrong else "there are none"
        raise InfopruneError(f"token_budgets must be positive numbers of patches, but {told}")
    return CapturedGraphs(blocks, rotary, budgets, max_bytes)


def _host_ms(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def _device_ms(run: Callable[[], object]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended))
