"""Whether weights are still those that something was made of: packed copies, or another tower that shares them."""

from __future__ import annotations

from torch import nn


class SeenWeights:
    """A module's weights as they are now.

    They are held, so that no others can come to lie where these were.
    """

    def __init__(self, module: nn.Module) -> None:
        self._held = [parameter.detach() for parameter in module.parameters()]
        self._state = _state(module)
        self._places = [each[:-1] for each in self._state]

    def are_those_of(self, module: nn.Module) -> bool:
        """Whether none was replaced or written to since.

        Not seen is what PyTorch itself does not count: writing through ``.data`` or NumPy, a fused optimiser's step,
        and writing to weights that were made in inference mode; nor another eps of a norm.
        """
        return self._state == _state(module)

    def lie_in(self, module: nn.Module) -> bool:
        """Whether none was replaced; writing to them is seen by whoever reads them where they lie."""
        return self._places == [each[:-1] for each in _state(module)]


def _state(module: nn.Module) -> list[tuple[object, ...]]:
    # Not by module.parameters(): this is asked in every pass, and that takes three times as long.
    parameters = [p for part in module.modules() for p in part._parameters.values() if p is not None]
    return [(p.data_ptr(), p.stride(), p.dtype, 0 if p.is_inference() else p._version) for p in parameters]
