"""YOPO (Zhang et al., arXiv 2410.06169): visual tokens do less work inside the language decoder.

The vision tower is untouched. The four strategies, for a prompt whose rows are visual (a picture's tokens) or text:

1. Window (``radius``): among visual rows, query i sees key j only if both lie in the same picture (or video frame) at
   most r rows and r columns apart on its grid, *before or behind it*: there the window takes the place of the causal
   mask, as in the release for LLaVA. Pairs with a text row on either side stay causal.
2. Heads (``heads``): in a dropped head no row sees a visual key, neither in the prompt nor in any step after it, and
   visual rows get no output. Text rows keep the head, over text keys.
3. FFN (``ffn_fraction``): visual rows use the first neurons alone. Text rows use all.
4. Cut (``layer_cut``): from this layer on no row sees a visual key. What visual rows compute there reaches no text row.

Text rows keep every projection and every neuron. Logits of visual rows mean nothing behind a cut.

Two executions of one setting give the same logits on text rows, in the prompt and in every step from its cache:

- ``as_released`` computes everything and masks it, on transformers' eager attention, as the release does.
- ``compact`` computes only what is used: visual rows go through q and o of live heads, k and v of KV heads that a live
  head reads, and the FFN's prefix; behind the cut they stop, and their keys and values are never made nor cached.

::

    shape = DecoderShape.of(model.config)
    with install(model, preset("nominal_25", shape), "compact"):
        model.generate(**inputs)
"""

from __future__ import annotations

from types import TracebackType
from typing import Literal
from weakref import WeakSet

from transformers import PreTrainedModel

from infoprune_rt.baselines.as_released import AsReleased
from infoprune_rt.baselines.compact import Compact
from infoprune_rt.baselines.decoder import DecoderShape, decoder_of
from infoprune_rt.baselines.flops import (
    as_released_flops,
    compact_flops,
    dense_flops,
    formula_flops,
    head_flops,
)
from infoprune_rt.baselines.heads import head_ratios, keep_evenly, keep_highest, read_masks, write_masks
from infoprune_rt.baselines.layout import VisualLayout
from infoprune_rt.baselines.settings import PRESETS, YopoSettings, preset
from infoprune_rt.errors import InfopruneError

Execution = Literal["as_released", "compact"]
EXECUTIONS: dict[str, type[AsReleased] | type[Compact]] = {"as_released": AsReleased, "compact": Compact}

__all__ = [
    "EXECUTIONS",
    "PRESETS",
    "DecoderShape",
    "Execution",
    "Installation",
    "VisualLayout",
    "YopoSettings",
    "as_released_flops",
    "compact_flops",
    "dense_flops",
    "formula_flops",
    "head_flops",
    "head_ratios",
    "install",
    "keep_evenly",
    "keep_highest",
    "preset",
    "read_masks",
    "write_masks",
]

_installed: WeakSet[PreTrainedModel] = WeakSet()


class Installation:
    """YOPO in a live model, until ``remove`` or the end of a ``with`` block; the model is then what it was."""

    def __init__(self, model: PreTrainedModel, running: AsReleased | Compact) -> None:
        self._model, self._running = model, running
        _installed.add(model)

    @property
    def layout(self) -> VisualLayout | None:
        """Of the last prompt; its ``frames`` are there if the settings have a window."""
        return self._running.passes.last

    def remove(self) -> None:
        """Give the plain model back. Calling it again does nothing."""
        self._running.remove()
        _installed.discard(self._model)

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def install(model: PreTrainedModel, settings: YopoSettings, execution: Execution) -> Installation:
    """Make a live Qwen2-VL or LLaVA-1.5 compute as YOPO does, one prompt (batch 1, no padding) at a time.

    Weights are shared with the model; ``compact`` adds copies of the live heads' slices of q, k, v and o in layers that
    drop heads, and makes them anew where a prompt finds other weights. ``as_released`` switches the decoder to eager
    attention. Raises InfopruneError where model and settings do not fit. A prompt that cannot be served raises it in
    the pass: without pictures, ending in one, in a batch, padded, or with a cache that is not its own.
    """
    if execution not in EXECUTIONS:
        raise InfopruneError(f"unknown YOPO execution {execution!r}; known are {', '.join(EXECUTIONS)}")
    if model in _installed:
        raise InfopruneError("YOPO is already installed in this model; remove that installation first")
    decoder = decoder_of(model)
    return Installation(model, EXECUTIONS[execution](decoder, settings.fit(decoder.shape)))
