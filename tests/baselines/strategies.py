"""Hypothesis strategies: prompts with pictures anywhere, and settings of every kind."""

from __future__ import annotations

from hypothesis import strategies as st
from small_decoders import FFN, HEADS, LAYERS, Segment

from infoprune_rt.baselines.yopo import YopoSettings

_PICTURES = {
    "llava": st.just((3, 3)),
    "qwen2_vl": st.one_of(
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    ),
}


@st.composite
def segments(draw: st.DrawFn, kind: str) -> list[Segment]:
    """One to three pictures (or videos), text between and behind them, and mostly before."""
    found: list[Segment] = [draw(st.integers(0, 3))]
    for _ in range(draw(st.integers(1, 3))):
        found += [draw(_PICTURES[kind]), draw(st.integers(1, 3))]
    return found


_masks = st.tuples(*[st.tuples(*[st.booleans()] * HEADS)] * LAYERS)

settings = st.builds(
    YopoSettings,
    heads=st.one_of(st.sampled_from([0.0, 1 / 3, 0.5, 1.0]), _masks),
    first_head_layer=st.integers(0, LAYERS),
    layer_cut=st.none() | st.integers(0, LAYERS),
    radius=st.none() | st.integers(0, 3),
    ffn_fraction=st.integers(0, FFN).map(lambda neurons: neurons / FFN),
)
