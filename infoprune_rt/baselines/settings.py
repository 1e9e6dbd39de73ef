"""What YOPO prunes: its settings, fitted to a decoder, and the presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from infoprune_rt.baselines.decoder import DecoderShape
from infoprune_rt.baselines.heads import HeadMasks, keep_evenly, keep_highest
from infoprune_rt.errors import InfopruneError


@dataclass(frozen=True)
class YopoSettings:
    """YOPO's four strategies (method.md section 4; ``yopo`` says which rows and columns each touches).

    heads: the query heads that stay for visual computation: a mask per layer (True: stays), or a share of every
    layer's heads, spread evenly. first_head_layer: earlier layers keep all heads, whatever ``heads`` says.
    layer_cut: layers from this one on do no visual computation; None: all layers do. radius: r of the
    (2r + 1) x (2r + 1) window of neighbours; None: no window. ffn_fraction: the share of the FFN's neurons, the first
    ones, that visual tokens use.
    """

    heads: float | HeadMasks = 1.0
    first_head_layer: int = 0
    layer_cut: int | None = None
    radius: int | None = None
    ffn_fraction: float = 1.0

    def fit(self, shape: DecoderShape) -> FittedSettings:
        """In the decoder's own numbers; InfopruneError where they do not fit it."""
        _check(self, shape)
        share = keep_evenly(shape.layers, shape.heads, self.heads) if not isinstance(self.heads, tuple) else self.heads
        every = (True,) * shape.heads
        return FittedSettings(
            live=tuple(every if layer < self.first_head_layer else mask for layer, mask in enumerate(share)),
            cut=shape.layers if self.layer_cut is None else self.layer_cut,
            radius=self.radius,
            neurons=round(shape.ffn_width * self.ffn_fraction),
        )


@dataclass(frozen=True)
class FittedSettings:
    """Settings in one decoder's numbers: live heads per layer, the cut, r, and the neurons that visual tokens use."""

    live: HeadMasks
    cut: int
    radius: int | None
    neurons: int


def _qwen2_vl_released(shape: DecoderShape) -> YopoSettings:
    """Qwen2-VL-7B as released: 14 of 28 heads from layer 2 on, cut at layer 24 of 28, no window, whole FFNs."""
    return YopoSettings(0.5, first_head_layer=shape.layers * 2 // 28, layer_cut=round(shape.layers * 24 / 28))


def _nominal_25(shape: DecoderShape) -> YopoSettings:
    """LLaVA's "25 %": 24 of 32 heads, cut at half the layers, a window of 5 x 5, half of the FFN."""
    return YopoSettings(0.75, layer_cut=shape.layers // 2, radius=2, ffn_fraction=0.5)


def _nominal_12(shape: DecoderShape) -> YopoSettings:
    """LLaVA's "12 %": half of the heads. The rest is our reading: cut at a quarter, YOPO's formula gives 12 %."""
    return YopoSettings(0.5, layer_cut=shape.layers // 4, radius=2, ffn_fraction=0.5)


_PRESETS: dict[str, Callable[[DecoderShape], YopoSettings]] = {
    "qwen2_vl_released": _qwen2_vl_released,
    "nominal_25": _nominal_25,
    "nominal_12": _nominal_12,
}
PRESETS = tuple(_PRESETS)


def preset(name: str, shape: DecoderShape, ratios: Tensor | None = None) -> YopoSettings:
    """One of ``PRESETS``, its numbers of layers and heads scaled to a decoder.

    ratios: ``head_ratios`` of the model, [layers, heads]; the heads with the highest stay. Without them heads are
    dropped evenly, which is as much work but not YOPO's choice.
    """
    if name not in _PRESETS:
        raise InfopruneError(f"unknown YOPO preset {name!r}; known are {', '.join(PRESETS)}")
    settings = _PRESETS[name](shape)
    if ratios is None:
        return settings
    assert not isinstance(settings.heads, tuple)  # a preset names a share
    return replace(settings, heads=keep_highest(ratios, settings.heads))


def _check(settings: YopoSettings, shape: DecoderShape) -> None:
    heads, cut, first = settings.heads, settings.layer_cut, settings.first_head_layer
    if isinstance(heads, tuple):
        sizes = {len(mask) for mask in heads}
        if len(heads) != shape.layers or sizes != {shape.heads}:
            raise InfopruneError(
                f"head masks for {len(heads)} layers of {'/'.join(map(str, sorted(sizes))) or 0} heads do not fit a "
                f"decoder of {shape.layers} layers with {shape.heads} heads; calibrate masks on this model"
            )
    elif not 0 <= heads <= 1:
        raise InfopruneError(f"heads={heads} is no share of a layer's heads; give a number from 0 to 1")
    if cut is not None and not 0 <= cut <= shape.layers:
        raise InfopruneError(
            f"layer_cut={cut} lies outside the decoder's {shape.layers} layers; give 0 to {shape.layers}, or None"
        )
    if not 0 <= first <= shape.layers:
        raise InfopruneError(f"first_head_layer={first} is none of the decoder's {shape.layers} layers; give 0 or more")
    if settings.radius is not None and settings.radius < 0:
        raise InfopruneError(f"radius={settings.radius} makes no window; give 0 or more, or None")
    if not 0 <= settings.ffn_fraction <= 1:
        raise InfopruneError(f"ffn_fraction={settings.ffn_fraction} is no share of an FFN; give a number from 0 to 1")
