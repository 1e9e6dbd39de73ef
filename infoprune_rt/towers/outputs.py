"""The calling convention that both compact towers share with transformers' towers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.base import Stream

HiddenStatesWanted = bool | int | Sequence[int] | None


def wanted_states(config: PretrainedConfig, wanted: HiddenStatesWanted, num_blocks: int) -> set[int] | None:
    """Which of the num_blocks + 1 hidden states to keep; None for none of them.

    wanted: transformers' ``output_hidden_states``: a flag, or one or several indices (negative ones count from the
    end, those out of range select nothing); None leaves it to the config.
    """
    if wanted is None:
        wanted = bool(config.output_hidden_states)
    count = num_blocks + 1
    if isinstance(wanted, bool):
        return set(range(count)) if wanted else None
    indices = [wanted] if isinstance(wanted, int) else wanted
    return {i % count for i in indices if -count <= i < count}


def run_blocks(
    tower: CompactEncoder, x: Tensor, stream: Stream, wanted: HiddenStatesWanted
) -> tuple[Tensor, tuple[Tensor | None, ...] | None]:
    """The last block's output (T x d), and the hidden states that are wanted (T x d each; see ``wanted_states``)."""
    keep = wanted_states(tower.config, wanted, len(tower.blocks))
    if keep is None:
        return tower.run_blocks(x, stream), None
    *before, last = tower.run_blocks(x, stream, keep)
    assert last is not None  # run_blocks always returns the last one
    return last, (*before, last if len(before) in keep else None)


def refuse_attentions(kwargs: Mapping[str, Any]) -> None:
    """A compact tower never forms attention maps; an empty answer would pass for one."""
    if kwargs.get("output_attentions"):
        raise InfopruneError("a compact tower has no attention maps to return; call it without output_attentions")


def tower_output(
    config: PretrainedConfig,
    last: Tensor,
    pooled: Tensor,
    states: tuple[Any, ...] | None,
    return_dict: bool | None,
) -> BaseModelOutputWithPooling | tuple[Any, ...]:
    """transformers' output class, or its tuple without the absent fields."""
    output = BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled, hidden_states=states)
    as_dict = config.return_dict if return_dict is None else return_dict
    return output if as_dict else output.to_tuple()
