"""The operators one by one at the 7B tower's sizes: each question's inputs, exact answer and contenders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

import infoprune_rt.ops  # noqa: F401  (registers torch.ops.infoprune)
from infoprune_rt.benchmarking.cpu_tower.cases import HEAD_DIM, HEADS, MIXED
from infoprune_rt.benchmarking.gpu.attention_peers import attention_peers, exact_attention
from infoprune_rt.benchmarking.gpu.measuring import DTYPE, flat
from infoprune_rt.ops import plain
from infoprune_rt.ops.triton_backend import demanding

if TYPE_CHECKING:
    from infoprune_kernels.roofline import Work

    from infoprune_rt.benchmarking.gpu.timing import Run

Args = tuple[Any, ...]
Builder = Callable[[Args], "Run"]
WIDTH, EPS = 1280, 1e-6
OURS, TWO_PRODUCTS = "ours", "PyTorch, LayerNorm and two products"
THREE_PRODUCTS, ONE_PRODUCT, PROJECTION = "PyTorch, three products", "PyTorch, one product", "PyTorch"
TOKENS = (1564, 4096)
ATTENTION_TOKENS = (*TOKENS, 12100)
SOME_HEADS = (HEADS, 5)
RANKS = (64, 128, 256, 384, 512, 640)


@dataclass(frozen=True)
class Question:
    """One operator at one size.

    sizes: what its rows say of it. args: fresh random arguments on a device. exact: from arguments to the answer in
    float64. contenders: from arguments to something to time. work: FLOPs and bytes.
    """

    operator: str
    sizes: Mapping[str, int]
    args: Callable[[torch.device], Args]
    exact: Callable[[Args], Tensor]
    contenders: Mapping[str, Builder]
    work: Callable[[], Work]

    @property
    def case(self) -> dict[str, Any]:
        """What its rows begin with."""
        return {"operator": self.operator, **self.sizes}

    def __str__(self) -> str:
        """In words."""
        return ", ".join([self.operator, *(f"{size} {name}" for name, size in self.sizes.items())])


def questions() -> Iterator[Question]:
    """What the issue of the GPU engine asks, goals first."""
    for tokens in ATTENTION_TOKENS:
        for heads in SOME_HEADS:
            yield attention_question([tokens], heads)
    for tokens in TOKENS:
        for rank in RANKS:
            yield ffn_question(tokens, rank)
    for heads in SOME_HEADS:
        yield attention_question([height * width for height, width in MIXED], heads)
    for tokens in TOKENS:
        yield qkv_question(tokens, HEADS)
        yield projection_question(tokens, HEADS)


def attention_question(lengths: list[int], heads: int, head_dim: int = HEAD_DIM) -> Question:
    """Packed images of these lengths."""

    def args(device: torch.device) -> Args:
        q, k, v = (_random(device, sum(lengths), heads, head_dim) for _ in range(3))
        return q, k, v, torch.tensor([0, *accumulate(lengths)]), head_dim**-0.5

    def work() -> Work:
        from infoprune_kernels import roofline

        return roofline.attention(lengths, heads, head_dim)

    sizes = {"patches": sum(lengths), "images": len(lengths), "heads": heads}
    contenders: dict[str, Builder] = {OURS: partial(_ours, "attention"), **attention_peers()}
    return Question("attention", sizes, args, lambda args: exact_attention(*args), contenders, work)


def ffn_question(tokens: int, rank: int, width: int = WIDTH) -> Question:
    """A low-rank FFN with its LayerNorm and residual."""

    def args(device: torch.device) -> Args:
        down, up = _weight(device, rank, width), _weight(device, width, rank)
        return *_normed(device, tokens, width), down, up, _random(device, width)

    def work() -> Work:
        from infoprune_kernels import roofline

        return roofline.ffn_lowrank(tokens, width, rank)

    return _linear_question("ffn_lowrank", {"patches": tokens, "rank": rank}, args, {TWO_PRODUCTS: _plain}, work)


def qkv_question(tokens: int, heads: int, width: int = WIDTH, head_dim: int = HEAD_DIM) -> Question:
    """LayerNorm, projection to q, k and v, rotation."""

    def args(device: torch.device) -> Args:
        rows = 3 * heads * head_dim
        angles = torch.randn(tokens, head_dim // 2, device=device).repeat(1, 2)
        projection = _weight(device, rows, width), _random(device, rows)
        return *_normed(device, tokens, width), *projection, angles.cos(), angles.sin(), heads, head_dim

    def work() -> Work:
        from infoprune_kernels import roofline

        return roofline.norm_qkv_rope(tokens, width, heads, head_dim)

    peers: dict[str, Callable[[str, Args], Run]] = {THREE_PRODUCTS: _plain, ONE_PRODUCT: _one_product}
    return _linear_question("norm_qkv_rope", {"patches": tokens, "heads": heads}, args, peers, work)


def projection_question(tokens: int, heads: int, width: int = WIDTH, head_dim: int = HEAD_DIM) -> Question:
    """The projection behind attention, with its residual."""

    def args(device: torch.device) -> Args:
        inner = heads * head_dim
        weight, bias = _weight(device, width, inner), _random(device, width)
        return _random(device, tokens, inner), weight, bias, _random(device, tokens, width)

    def work() -> Work:
        from infoprune_kernels import roofline

        return roofline.linear_residual(tokens, heads * head_dim, width)

    return _linear_question("linear_residual", {"patches": tokens, "heads": heads}, args, {PROJECTION: _plain}, work)


def _linear_question(
    operator: str,
    sizes: Mapping[str, int],
    args: Callable[[torch.device], Args],
    peers: Mapping[str, Callable[[str, Args], Run]],
    work: Callable[[], Work],
) -> Question:
    """Of an operator whose plain definition runs in float64 as it is."""

    def exact(args: Args) -> Tensor:
        return flat(getattr(plain, operator)(*(_wide(arg) for arg in args)))

    contenders = {OURS: partial(_ours, operator)} | {name: partial(peer, operator) for name, peer in peers.items()}
    return Question(operator, sizes, args, exact, contenders, work)


def _ours(operator: str, args: Args) -> Run:
    """The Triton kernels, where the arguments are on a GPU."""
    call = getattr(torch.ops.infoprune, operator)

    def run() -> Any:
        with demanding("triton"):
            return call(*args)

    return run


def _plain(operator: str, args: Args) -> Run:
    return partial(getattr(plain, operator), *args)


def _one_product(operator: str, args: Args) -> Run:
    """``plain.norm_qkv_rope`` with one product for q, k and v, which are then slices of its rows."""
    x, norm_weight, norm_bias, eps, weight, bias, cos, sin, heads, head_dim = args
    cos, sin = cos[:, None], sin[:, None]

    def turned(part: Tensor) -> Tensor:
        first, second = part.chunk(2, dim=-1)
        return torch.add(part * cos, torch.cat((-second, first), dim=-1) * sin).to(part.dtype)

    def run() -> Any:
        normed = F.layer_norm(x, (x.shape[-1],), norm_weight, norm_bias, eps)
        q, k, v = F.linear(normed, weight, bias).view(-1, 3, heads, head_dim).unbind(1)
        return turned(q), turned(k), v

    return run


def _random(device: torch.device, *sizes: int) -> Tensor:
    return torch.randn(*sizes, device=device).to(DTYPE)


def _weight(device: torch.device, rows: int, columns: int) -> Tensor:
    return (torch.randn(rows, columns, device=device) / math.sqrt(columns)).to(DTYPE)


def _normed(device: torch.device, tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """x, and a norm's weight, bias and epsilon."""
    return _random(device, tokens, width), _random(device, width), _random(device, width), EPS


def _wide(arg: Any) -> Any:
    return arg.double() if isinstance(arg, Tensor) and arg.is_floating_point() else arg
