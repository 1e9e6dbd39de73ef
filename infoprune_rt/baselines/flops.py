"""FLOPs of the decoder's prefill, counted two ways. A multiply-add is two.

``dense_flops``, ``as_released_flops`` and ``compact_flops`` count every matrix product that the execution computes, of
text rows, too; attention counts as the full rectangle of queries and keys of every call, masked or not, as
``torch.utils.flop_counter`` does. Norms, activations, softmax, rotary positions and masks are no products and are left
out, and so are the embedding and the language model's head (``head_flops``). ``formula_flops`` is YOPO's own count.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from infoprune_rt.baselines.decoder import DecoderShape
from infoprune_rt.baselines.layout import VisualLayout, bands
from infoprune_rt.baselines.settings import YopoSettings


def dense_flops(shape: DecoderShape, tokens: int) -> int:
    """All layers of the plain decoder on a prompt of this many tokens."""
    return shape.layers * (
        _linear(shape, tokens, shape.heads, shape.kv_heads, shape.ffn_width)
        + _attention(shape, shape.heads, tokens * tokens)
    )


def as_released_flops(shape: DecoderShape, tokens: int) -> int:
    """The same: masks skip no product."""
    return dense_flops(shape, tokens)


def compact_flops(shape: DecoderShape, settings: YopoSettings, layout: VisualLayout) -> int:
    """What compact computes on one prompt, exactly; in a window whole bands of grid rows (``layout.bands``)."""
    fitted = settings.fit(shape)
    text, visual, tokens = len(layout.text), len(layout.visual), layout.tokens
    of_text = _linear(shape, text, shape.heads, shape.kv_heads, shape.ffn_width)
    pairs = tokens * tokens
    if fitted.radius is not None:
        pairs = text * tokens + sum(band.allowed.numel() for band in bands(layout, fitted.radius))
    total = shape.layers * of_text
    for layer, live in enumerate(fitted.live):
        heads = sum(live) if layer < fitted.cut else 0
        total += _attention(shape, heads, pairs) + _attention(shape, shape.heads - heads, text * text)
        if layer < fitted.cut:
            kv = len({head // shape.group for head, stays in enumerate(live) if stays})
            total += _linear(shape, visual, heads, kv, fitted.neurons)
    return total


def head_flops(config: PretrainedConfig) -> int:
    """The language model's head on one token, all that ``generate`` computes of it in the prefill."""
    text = config.get_text_config(decoder=True)
    return 2 * int(text.hidden_size) * int(text.vocab_size)


def formula_flops(shape: DecoderShape, visual_tokens: int, settings: YopoSettings | None = None) -> float:
    """YOPO's count, L (8 n d^2 + 4 n^2 d + 6 n d m), of n visual tokens in the language model (method.md section 4).

    settings: None is the dense formula. What becomes of it under settings is our reading: only layers before the cut
    count, both terms of the attention are scaled by a layer's share of live heads, one n of n^2 becomes the window's
    (2r + 1)^2 neighbours, and m the neurons in use. Like the formula itself it takes k and v to be as wide as q, which
    in a decoder with fewer KV heads they are not.
    """
    n, d = visual_tokens, shape.width
    fitted = (settings or YopoSettings()).fit(shape)
    keys = n if fitted.radius is None else min(n, (2 * fitted.radius + 1) ** 2)
    shares = [sum(live) / shape.heads for live in fitted.live[: fitted.cut]]
    return sum(share * (8 * n * d**2 + 4 * n * keys * d) + 6 * n * d * fitted.neurons for share in shares)


def _linear(shape: DecoderShape, rows: int, heads: int, kv_heads: int, neurons: int) -> int:
    """q, o, k, v and the FFN's three products."""
    columns = 2 * (heads + kv_heads) * shape.head_dim + 3 * neurons
    return 2 * rows * shape.width * columns


def _attention(shape: DecoderShape, heads: int, pairs: int) -> int:
    """Scores and weighted sum of this many pairs of a query and a key."""
    return 4 * heads * shape.head_dim * pairs
