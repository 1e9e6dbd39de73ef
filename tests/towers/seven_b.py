"""A checkpoint with Qwen2-VL-7B's tensor names, sizes and sharding that takes next to no disk.

Each shard is a true safetensors header followed by a hole of the true size; a few tensors are really written.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig

from infoprune_rt.towers import adapter_by_name

SHARDS = 5
SHARD_BYTES = 39 * 10**8
WRITTEN = ("visual.patch_embed.proj.weight", "visual.blocks.31.mlp.fc2.weight", "visual.merger.mlp.2.bias")

# Run in a process of its own, because the peak is that of a process.
LOAD = """
import json, resource, sys, torch
from infoprune_rt.towers.loading import load_tower
tower = load_tower(sys.argv[1], dtype=torch.float32)
unit = 1 if sys.platform == "darwin" else 1024
names = ("patch_embed.proj.weight", "blocks.31.mlp.fc2.weight", "merger.mlp.2.bias")
print(json.dumps({
    "parameters": sum(p.numel() for p in tower.parameters()),
    "samples": {f"visual.{n}": tower.get_parameter(n).flatten()[::997].tolist() for n in names},
    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
}))
"""


def write_sparse_7b(folder: Path) -> dict[str, Tensor]:
    """Write the checkpoint; returns the tensors whose values are known (the others are zero)."""
    config = Qwen2VLConfig(
        text_config={
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
        },
        vision_config={"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
    )
    config.save_pretrained(folder)
    weight_map = {}
    known = {}
    for i, shapes in enumerate(_shards(_shapes(config))):
        name = f"model-{i + 1:05d}-of-{SHARDS:05d}.safetensors"
        known |= _write_shard(folder / name, shapes)
        weight_map.update(dict.fromkeys(shapes, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return known


def _shapes(config: Qwen2VLConfig) -> dict[str, tuple[int, ...]]:
    """All tensors of the full model under the published files' names, in their order."""
    with torch.device("meta"):
        tower = adapter_by_name("qwen2_vl").build(config.vision_config)
    shapes = {f"visual.{name}": tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    shapes["model.embed_tokens.weight"] = (152064, 3584)
    layer = {
        "input_layernorm.weight": (3584,),
        "mlp.down_proj.weight": (3584, 18944),
        "mlp.gate_proj.weight": (18944, 3584),
        "mlp.up_proj.weight": (18944, 3584),
        "post_attention_layernorm.weight": (3584,),
        "self_attn.k_proj.bias": (512,),
        "self_attn.k_proj.weight": (512, 3584),
        "self_attn.o_proj.weight": (3584, 3584),
        "self_attn.q_proj.bias": (3584,),
        "self_attn.q_proj.weight": (3584, 3584),
        "self_attn.v_proj.bias": (512,),
        "self_attn.v_proj.weight": (512, 3584),
    }
    for i in range(28):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes | {"model.norm.weight": (3584,), "lm_head.weight": (152064, 3584)}


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * torch.Size(shape).numel()


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    for name, shape in shapes.items():
        if sum(map(_bytes, shards[-1].values())) + _bytes(shape) > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = shape
    return shards


def _write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + _bytes(shape)]}
        end += _bytes(shape)
    text = json.dumps(header).encode()
    known = {name: torch.randn(shapes[name]).bfloat16() for name in WRITTEN if name in shapes}
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
        for name, tensor in known.items():
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(tensor.view(torch.int16).numpy().tobytes())
    return known
