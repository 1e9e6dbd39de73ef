"""x + fc2 act(fc1 norm(x)): the rows are normalised once, then two products; the activation ends the first one."""

from __future__ import annotations

from torch import Tensor

from infoprune_kernels.configs import ConfigTable, table_for
from infoprune_kernels.layer_norm import layer_norm
from infoprune_kernels.linear_residual import ACTIVATIONS, linear, linear_specimen
from infoprune_kernels.specimens import Specimen


def ffn_dense(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    activation: str,
) -> Tensor:
    """An FFN with m neurons, and the residual.

    Args:
        x: T x d, float32, float16 or bfloat16, on one device with the others, which have its dtype.
        norm_weight, norm_bias, eps: LayerNorm's (d each).
        fc1_weight, fc1_bias: m x d and m.
        fc2_weight, fc2_bias: d x m and d.
        activation: one of ACTIVATIONS.

    Returns:
        T x d, x's dtype.

    Raises:
        ValueError: an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"ffn_dense: unknown activation {activation!r}; known are {', '.join(ACTIVATIONS)}")
    table = table_for(x.device)
    sizes = {"tokens": len(x), "width": x.shape[1], "neurons": len(fc1_weight)}
    x = x.contiguous()
    normed = layer_norm(x, norm_weight, norm_bias, eps)
    hidden = linear(normed, fc1_weight, fc1_bias, table.choose("ffn_dense", **sizes), activation=activation)
    second = table.choose("linear_residual", tokens=len(x), inputs=len(fc1_weight), outputs=x.shape[1])
    return linear(hidden, fc2_weight, fc2_bias, second, residual=x)


def specimens(table: ConfigTable) -> list[Specimen]:
    """Both products of the 7B's dense FFN, and of a quarter of its neurons with the other activations; in bfloat16.

    Of the first product all tiles; those of the second are ``linear_residual``'s.
    """
    found = [
        linear_specimen("ffn_dense", "fc1", tile, 1280, 5120, activation="quick_gelu")
        for tile in table.tiles("ffn_dense")
    ]
    first = table.choose("ffn_dense", tokens=4096, width=1280, neurons=1280)
    found += [linear_specimen("ffn_dense", "fc1", first, 1280, 1280, activation=name) for name in ACTIVATIONS[1:]]
    for neurons in (5120, 1280):
        second = table.choose("linear_residual", tokens=4096, inputs=neurons, outputs=1280)
        found.append(linear_specimen("ffn_dense", "fc2", second, neurons, 1280))
    return found
