"""Parameters and FLOPs of a tower's blocks, dense or compact.

FLOPs count a multiply-add as two and cover the matrix products and the attention core; norms,
activations and softmax are left out, as in method.md section 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from infoprune_rt.ops.plain import GATED
from infoprune_rt.runtime.blocks import BlockSpec
from infoprune_rt.towers.base import TowerShape


@dataclass(frozen=True)
class BlockCost:
    """One block, or the sum of several: parameters, and FLOPs of one pass."""

    attention_parameters: int = 0
    ffn_parameters: int = 0
    linear_flops: int = 0  # the attention's projections and the FFN
    attention_flops: int = 0  # the core: scores and weighted sum
    int8_parameters: int = 0  # of all parameters, those that take one byte whatever the tower's dtype

    @property
    def parameters(self) -> int:
        """All parameters: norms, biases and scales included."""
        return self.attention_parameters + self.ffn_parameters

    def bytes(self, itemsize: int) -> int:
        """Of all parameters in a dtype of this many bytes."""
        return self.int8_parameters + itemsize * (self.parameters - self.int8_parameters)

    @property
    def flops(self) -> int:
        """All FLOPs."""
        return self.linear_flops + self.attention_flops

    def __add__(self, other: BlockCost) -> BlockCost:
        return BlockCost(
            self.attention_parameters + other.attention_parameters,
            self.ffn_parameters + other.ffn_parameters,
            self.linear_flops + other.linear_flops,
            self.attention_flops + other.attention_flops,
            self.int8_parameters + other.int8_parameters,
        )


def block_cost(spec: BlockSpec, shape: TowerShape, seq_lens: Sequence[int]) -> BlockCost:
    """Cost of one block on a pack of sequences with these lengths (tokens per image or frame)."""
    d, tokens = shape.width, sum(seq_lens)
    inner = spec.num_heads * shape.head_dim
    ffn_weights, ffn_biases, ffn_rows = _ffn_sizes(spec, shape)
    attention_biases = 3 * inner + d + (2 * d if inner else 0)  # a block without heads keeps out.bias alone
    attention_scales = 3 * inner + d if spec.quantize and inner else 0
    ffn_scales = ffn_rows if spec.quantize else 0
    return BlockCost(
        attention_parameters=4 * d * inner + attention_biases + attention_scales,
        ffn_parameters=ffn_weights + ffn_biases + ffn_scales + 2 * d,
        int8_parameters=4 * d * inner + ffn_weights if spec.quantize else 0,
        linear_flops=2 * tokens * (4 * d * inner + ffn_weights),
        attention_flops=4 * inner * sum(n * n for n in seq_lens),
    )


def tower_costs(specs: Iterable[BlockSpec], shape: TowerShape, seq_lens: Sequence[int]) -> list[BlockCost]:
    """One cost per block; ``sum(costs, BlockCost())`` is the tower's (its blocks', without the ends)."""
    return [block_cost(spec, shape, seq_lens) for spec in specs]


def _ffn_sizes(spec: BlockSpec, shape: TowerShape) -> tuple[int, int, int]:
    """Numbers of weights, of biases and of the weights' rows of a block's FFN."""
    d = shape.width
    if spec.ffn == "merged":
        return d * d, d, d
    if spec.ffn == "lowrank":
        assert spec.size is not None  # a checked spec has it
        return 2 * d * spec.size, d, spec.size + d
    hidden = shape.ffn_width if spec.size is None else spec.size
    rows = 2 * hidden if (spec.activation or shape.activation) in GATED else hidden
    return d * (rows + hidden), rows + d, rows + d
