"""The five operators, as ``torch.ops.infoprune.<name>`` once this package is imported."""

from infoprune_rt.ops import registration as registration
from infoprune_rt.ops.schema import NAMESPACE as NAMESPACE
from infoprune_rt.ops.schema import SCHEMAS as SCHEMAS
