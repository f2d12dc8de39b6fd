"""numpy arrays in the heap. numpy is optional: it is imported when the first array is asked for.

`numpy.frombuffer` keeps a view of the memory, the view keeps the block's anchor, so the block returns with the last
array over it.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from slabd.errors import InvalidArgument, InvalidType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike, NDArray

# A cache line, and what vector instructions like; every block is aligned to it anyway.
_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class Plan:
    """An array to be made."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def alignment(self) -> int:
        """What its first element is aligned to."""
        return max(_ALIGNMENT, self.dtype.alignment)

    def nothing(self) -> NDArray[Any]:
        """Return the array when it has no bytes: it needs no block."""
        import numpy as np  # noqa: PLC0415  # optional

        return np.empty(self.shape, self.dtype)

    def over(self, view: memoryview) -> NDArray[Any]:
        """Return the array over a block's view."""
        import numpy as np  # noqa: PLC0415  # optional

        return np.frombuffer(view, self.dtype).reshape(self.shape)


def plan(shape: int | tuple[int, ...], dtype: DTypeLike) -> Plan:
    """Check what is asked for.

    Raises:
        ImportError: numpy is not installed.
        InvalidArgument: a negative dimension, or elements that are Python objects.
    """
    try:
        import numpy as np  # noqa: PLC0415  # optional
    except ImportError as error:
        raise ImportError("arrays in the heap need numpy: pip install numpy") from error
    kind: np.dtype[Any] = np.dtype(dtype)
    if kind.hasobject:
        raise InvalidArgument(f"elements of {kind} are Python objects, which cannot be shared between processes")
    try:
        dimensions = (
            (operator.index(shape),) if not isinstance(shape, (tuple, list)) else tuple(map(operator.index, shape))
        )
    except TypeError:
        raise InvalidType(f"a shape is an integer or a tuple of integers, not {shape!r}") from None
    if any(dimension < 0 for dimension in dimensions):
        raise InvalidArgument(f"a shape has no negative dimensions: {shape!r}")
    return Plan(dimensions, kind)
