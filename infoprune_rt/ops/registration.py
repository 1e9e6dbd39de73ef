"""Puts the five operators into ``torch.ops.infoprune``: plain kernel, CUDA kernel, fake and backward of each.

The backward of an operator differentiates its plain definition again from the saved inputs; it is
an operator of its own (``<name>_backward``), because the sequence bounds have values that a
compiler's trace cannot see. With int8 weights there is no backward: rounding has no gradient.

torch leaves out trailing arguments that have their default value when it calls these kernels.
"""

# torch.library.Library has no annotations.
# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import checks, fakes, plain, triton_backend
from infoprune_rt.ops.schema import NAMESPACE, SCHEMAS

_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def _checked(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    check = checks.CHECKS[name]

    def kernel(*args: Any) -> Any:
        check(*args)
        device = args[0].device.type
        if torch.is_autocast_enabled(device):  # the operators compute in their inputs' dtype, as the fakes promise
            with torch.autocast(device, enabled=False):
                return run(*args)
        return run(*args)

    return kernel


def _backward_schema(schema: str) -> str:
    arguments = schema[1 : schema.index(") ->")]
    return f"(Tensor[] grads, bool[] wanted, {arguments}) -> Tensor[]"


def _wanted(args: Sequence[Any], wanted: Sequence[bool]) -> list[int]:
    # Of different lengths where trailing defaults were left out of one of them.
    return [i for i, (arg, want) in enumerate(zip(args, wanted, strict=False)) if want and arg is not None]


def _recompute_gradients(name: str) -> Callable[..., list[Tensor]]:
    definition = getattr(plain, name)

    def kernel(grads: list[Tensor], wanted: list[bool], *args: Any) -> list[Tensor]:
        if any(isinstance(arg, Tensor) and arg.dtype == torch.int8 for arg in args):
            raise InfopruneError(
                f"infoprune::{name} has no gradient with int8 weights; train the tower first, then quantise it"
            )
        chosen = _wanted(args, wanted)
        leaves = list(args)
        for i in chosen:
            leaves[i] = args[i].detach().requires_grad_()
        with torch.enable_grad():
            outputs = definition(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = torch.autograd.grad(outputs, [leaves[i] for i in chosen], grads)
        return [grad.contiguous() for grad in found]

    return kernel


def _fake_gradients(grads: list[Tensor], wanted: list[bool], *args: Any) -> list[Tensor]:
    return [torch.empty_like(args[i], memory_format=torch.contiguous_format) for i in _wanted(args, wanted)]


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.tensor_places = [i for i, value in enumerate(inputs) if isinstance(value, Tensor)]
    ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
    ctx.save_for_backward(*(inputs[i] for i in ctx.tensor_places))


def _backward(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        args = list(ctx.others)
        for i, tensor in zip(ctx.tensor_places, ctx.saved_tensors, strict=True):
            args[i] = tensor
        wanted = list(ctx.needs_input_grad)
        operator = getattr(getattr(torch.ops, NAMESPACE), f"{name}_backward")
        result: list[Tensor | None] = [None] * len(wanted)
        for i, grad in zip(_wanted(args, wanted), operator(list(grads), wanted, *args), strict=True):
            result[i] = grad
        return tuple(result)

    return backward


def _register(name: str, schema: str) -> None:
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, _checked(name, getattr(plain, name)), "CompositeExplicitAutograd")
    if triton_backend.missing() is None:
        _LIBRARY.impl(name, _checked(name, triton_backend.on_cuda(name)), "CUDA")
    torch.library.register_fake(f"{NAMESPACE}::{name}", getattr(fakes, name), lib=_LIBRARY)
    _LIBRARY.define(f"{name}_backward" + _backward_schema(schema))
    _LIBRARY.impl(f"{name}_backward", _recompute_gradients(name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}_backward", _fake_gradients, lib=_LIBRARY)
    torch.library.register_autograd(f"{NAMESPACE}::{name}", _backward(name), setup_context=_save_inputs, lib=_LIBRARY)


for _name, _schema in SCHEMAS.items():
    _register(_name, _schema)
