"""The five operators' signatures, in one place; every backend implements exactly these.

T is the number of tokens of all images packed in one sequence, d the tower's width, h the block's
own head count, D the head size.

A weight is int8 exactly where its scale is given (one number per row, in x's dtype): it stands for
weight * scale[:, None], and its input is quantised per token at run time (``plain.int8_linear``).
"""

from __future__ import annotations

NAMESPACE = "infoprune"

SCHEMAS: dict[str, str] = {
    # x (T x d) -> q, k, v (T x h x D): normalised, projected, rotated where cos and sin (T x D, float32) are given.
    "norm_qkv_rope": (
        "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor weight, Tensor bias, "
        "Tensor? cos, Tensor? sin, int num_heads, int head_dim, Tensor? weight_scale=None) -> (Tensor, Tensor, Tensor)"
    ),
    # q, k, v (T x h x D), bounds of S sequences (S + 1, int64, on the host) -> T x (h * D); not causal.
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, float scale) -> Tensor",
    # x (T x n), weight (d x n), bias (d), residual (T x d) -> T x d.
    "linear_residual": "(Tensor x, Tensor weight, Tensor bias, Tensor residual, Tensor? weight_scale=None) -> Tensor",
    # x (T x d) -> x + up (down norm(x)) + bias; down (k x d), up (d x k), or up None and down the merged d x d map.
    "ffn_lowrank": (
        "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor down, Tensor? up, Tensor bias, "
        "Tensor? down_scale=None, Tensor? up_scale=None) -> Tensor"
    ),
    # x (T x d) -> x + fc2 act(fc1 norm(x)); fc1 m x d, fc2 d x m. The last `linear` hidden values have no activation.
    # "silu_gated": fc1 is 2m x d, and what its first m rows give multiplies, through SiLU, what the others give.
    "ffn_dense": (
        "(Tensor x, Tensor norm_weight, Tensor norm_bias, float eps, Tensor fc1_weight, Tensor fc1_bias, "
        "Tensor fc2_weight, Tensor fc2_bias, str activation, "
        "Tensor? fc1_scale=None, Tensor? fc2_scale=None, int linear=0) -> Tensor"
    ),
}
