"""The plan: which heads and which FFN form every block keeps, and where that came from.

A plan is JSON: written, read, edited by hand, applied. ``FFNPlan`` says what is *wanted* (mode,
and either a size or an epsilon); applying the plan returns a copy whose blocks also say what they
*got* (kind, size, held-out error). A resolved plan can be edited and applied again.
"""

from __future__ import annotations

import json
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import write_text
from infoprune_rt.ops.plain import ACTIVATIONS
from infoprune_rt.towers.base import TowerShape

PLAN_FORMAT = 1
FFNMode = Literal["dense", "taylor", "rrr", "neurons", "hybrid"]
FFNKind = Literal["dense", "lowrank", "merged", "neurons", "hybrid"]
Quantization = Literal["int8"]
MODES: tuple[str, ...] = ("dense", "taylor", "rrr", "neurons", "hybrid")
FACTORED_MODES = ("taylor", "rrr")  # those that fit two low-rank factors
KINDS: tuple[str, ...] = ("dense", "lowrank", "merged", "neurons", "hybrid")
QUANTIZATIONS: tuple[str, ...] = ("int8",)


@dataclass(frozen=True)
class FFNPlan:
    """One block's FFN.

    mode: how it is fitted. size: rank k (``taylor``, ``rrr``), kept neurons m' (``neurons``), or both
    together, half of it each (``hybrid``); None lets epsilon decide. epsilon: admitted relative error
    (method.md section 2: of the weight spectrum for ``taylor``, of the output for the others). bias:
    ``taylor`` keeps the Taylor expansion's own constant, ``mean`` corrects it by the calibration mean.
    between: an activation between the two factors of ``taylor`` or ``rrr``, up phi(down x) + c; None is the linear
    map. The paper does not say whether one survives there: this is an open reading. The factors are
    those of the linear map, so where they fit best without it (``rrr``, every block apart) an activation
    loses accuracy; on the tiny VLM it gained some points in the other cases and stayed far below
    ``neurons``. Size and epsilon are those of the linear map; the block takes the ``neurons`` kind.
    max_error: the block stays dense when its held-out relative output error exceeds this.
    kind, fitted_size (of a ``hybrid`` FFN with the rank of its linear path, which is fitted_linear), held_out_error
    and note are filled in when the plan is applied; they are never read.
    """

    mode: FFNMode = "dense"
    size: int | None = None
    epsilon: float | None = None
    bias: Literal["taylor", "mean"] = "mean"
    between: str | None = None
    max_error: float | None = None
    kind: FFNKind | None = None
    fitted_size: int | None = None
    fitted_linear: int | None = None
    held_out_error: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class BlockPlan:
    """One block: the heads it keeps (indices into the dense tower), and its FFN.

    zeta: a factor per kept head folded into the output projection; None sets survivors to 1.
    quantize: "int8" stores all of the block's weights as int8 with a scale per output channel; None keeps
    them as they are.
    """

    heads: tuple[int, ...]
    ffn: FFNPlan = field(default_factory=FFNPlan)
    zeta: tuple[float, ...] | None = None
    quantize: Quantization | None = None


@dataclass(frozen=True)
class Plan:
    """All blocks of one tower. ``refit`` solves each output projection again on the kept heads;
    ``sequential`` fits each block on the already compressed stream."""

    architecture: str
    shape: TowerShape
    blocks: tuple[BlockPlan, ...]
    refit: bool = True
    sequential: bool = True
    method: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _validate(self)

    def quantized(self, how: Quantization) -> Plan:
        """The same plan with the weights of every block quantised."""
        return replace(self, blocks=tuple(replace(block, quantize=how) for block in self.blocks))

    def check_tower(self, architecture: str, shape: TowerShape) -> None:
        """Raise InfopruneError unless the plan was made for a tower of this architecture and these sizes."""
        if self.architecture != architecture:
            raise InfopruneError(
                f"the plan is for a {self.architecture!r} tower, but this one is {architecture!r}; "
                "make a plan for this tower"
            )
        for name, ours in asdict(shape).items():
            planned = getattr(self.shape, name)
            if planned != ours:
                raise InfopruneError(
                    f"the plan is for a tower with {name} {planned!r}, but this one has {name} {ours!r}; "
                    "make a plan for this tower"
                )

    def write(self, path: Path) -> None:
        """Write as JSON, aside and then renamed."""
        write_text(path, json.dumps({"format": PLAN_FORMAT, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read and validate; every mistake is told with the file's and the field's name."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InfopruneError(f"{path} is not a readable plan: {error}") from error
        try:
            return cls.from_dict(data)
        except InfopruneError as error:
            raise InfopruneError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, data: Any) -> Plan:
        """Build a plan from parsed JSON."""
        if not isinstance(data, dict) or data.get("format") != PLAN_FORMAT:
            raise InfopruneError(f'not a plan of format {PLAN_FORMAT} (its "format" field is missing or another)')
        values = {key: value for key, value in data.items() if key != "format"}
        raw_blocks = values.get("blocks")
        if not isinstance(raw_blocks, list):
            raise InfopruneError('"blocks" must be a list with one entry per block')
        values["blocks"] = tuple(_block(i, raw) for i, raw in enumerate(raw_blocks))
        values["shape"] = _record(TowerShape, values.get("shape"), '"shape"')
        plan: Plan = _record(cls, values, "the plan")
        return plan


def _record(cls: type[Any], values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise InfopruneError(f"{where} must be an object")
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise InfopruneError(f"{where} has an unknown field {unknown[0]!r}; known are {', '.join(sorted(known))}")
    for needed in fields(cls):
        if needed.name not in values and needed.default is MISSING and needed.default_factory is MISSING:
            raise InfopruneError(f"{where} lacks the field {needed.name!r}")
    return cls(**values)


def _block(index: int, raw: Any) -> BlockPlan:
    where = f"block {index}"
    if not isinstance(raw, dict):
        raise InfopruneError(f"{where} must be an object")
    values = dict(raw)
    for name in ("heads", "zeta"):
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    values["ffn"] = _record(FFNPlan, values.get("ffn"), f'{where}: "ffn"')
    block: BlockPlan = _record(BlockPlan, values, where)
    return block


def _whole(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _validate(plan: Plan) -> None:
    shape = plan.shape
    for name in ("num_blocks", "width", "num_heads", "head_dim", "ffn_width"):
        if not _whole(getattr(shape, name), 1, math.inf):
            raise InfopruneError(f'"shape": {name} must be a whole number above 0, not {getattr(shape, name)!r}')
    for name, kind in (("refit", bool), ("sequential", bool), ("method", dict), ("provenance", dict)):
        if not isinstance(getattr(plan, name), kind):
            what = "true or false" if kind is bool else "an object"
            raise InfopruneError(f'"{name}" must be {what}, not {getattr(plan, name)!r}')
    if len(plan.blocks) != shape.num_blocks:
        raise InfopruneError(f"the plan has {len(plan.blocks)} blocks, but the tower has {shape.num_blocks}")
    for i, block in enumerate(plan.blocks):
        heads = block.heads
        if not isinstance(heads, tuple) or not all(_whole(h, -math.inf, math.inf) for h in heads):
            raise InfopruneError(f'block {i}: "heads" must be a list of head indices')
        if any(not 0 <= h < shape.num_heads for h in heads):
            raise InfopruneError(
                f"block {i}: heads {list(heads)} name a head outside 0..{shape.num_heads - 1}; "
                f"the tower has {shape.num_heads} heads"
            )
        if len(set(heads)) != len(heads) or list(heads) != sorted(heads):
            raise InfopruneError(f"block {i}: heads {list(heads)} must be distinct and in rising order")
        if block.zeta is not None and not (isinstance(block.zeta, tuple) and all(map(_number, block.zeta))):
            raise InfopruneError(f'block {i}: "zeta" must be a list of finite numbers, one per kept head, or null')
        if block.zeta is not None and len(block.zeta) != len(heads):
            raise InfopruneError(f"block {i}: {len(block.zeta)} zeta values for {len(heads)} kept heads")
        if block.quantize is not None and block.quantize not in QUANTIZATIONS:
            raise InfopruneError(
                f'block {i}: unknown "quantize" {block.quantize!r}; known are {", ".join(QUANTIZATIONS)}, and null'
            )
        _validate_ffn(i, block.ffn, shape)


def _validate_ffn(i: int, ffn: FFNPlan, shape: TowerShape) -> None:
    if ffn.mode not in MODES:
        raise InfopruneError(f"block {i}: unknown FFN mode {ffn.mode!r}; known are {', '.join(MODES)}")
    if ffn.bias not in ("taylor", "mean"):
        raise InfopruneError(f'block {i}: FFN bias must be "taylor" or "mean", not {ffn.bias!r}')
    if ffn.kind is not None and ffn.kind not in KINDS:
        raise InfopruneError(f"block {i}: unknown FFN kind {ffn.kind!r}; known are {', '.join(KINDS)}")
    if ffn.epsilon is not None and not (_number(ffn.epsilon) and 0 < ffn.epsilon < 1):
        raise InfopruneError(f"block {i}: epsilon must lie between 0 and 1 (exclusive), not {ffn.epsilon!r}")
    if ffn.max_error is not None and not (_number(ffn.max_error) and ffn.max_error > 0):
        raise InfopruneError(f"block {i}: max_error must be a number above 0, not {ffn.max_error!r}")
    if ffn.between is not None and ffn.between not in tuple(ACTIVATIONS):
        raise InfopruneError(
            f"block {i}: unknown activation {ffn.between!r} between the factors; known are {', '.join(ACTIVATIONS)}"
        )
    if ffn.between is not None and ffn.mode not in FACTORED_MODES:
        raise InfopruneError(
            f"block {i}: FFN mode {ffn.mode!r} has no factors to put an activation between; that is for "
            f"{' and '.join(FACTORED_MODES)}"
        )
    if ffn.mode == "dense":
        return
    what, least, limit = {
        "neurons": ("neurons", 1, shape.ffn_width),
        "hybrid": ("neurons and rank", 2, min(shape.ffn_width, 2 * shape.width)),
    }.get(ffn.mode, ("rank", 1, shape.width))
    if ffn.size is None and ffn.epsilon is None:
        raise InfopruneError(f"block {i}: FFN mode {ffn.mode!r} needs a size ({what}) or an epsilon")
    if ffn.size is not None and not _whole(ffn.size, least, limit):
        raise InfopruneError(f"block {i}: FFN {what} must be a whole number in {least}..{limit}, not {ffn.size!r}")
