"""A memory barrier in every process that asked for one: membarrier(2).

After `barrier()` returns, every thread of a registered process has been through a full memory barrier. So a client may
store and then load without a barrier of its own, as long as the daemon, which stores and then loads the other way
round, has this one in between: https://www.kernel.org/doc/html/latest/core-api/membarrier.html and the man page.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from slabd_proto.lane import MEMBARRIER_GLOBAL_EXPEDITED, MEMBARRIER_NUMBERS


def barrier() -> None:
    """Issue a barrier.

    Raises:
        OSError: this kernel (before 4.16) or machine has none.
    """
    number = MEMBARRIER_NUMBERS.get(os.uname().machine)
    if number is None:
        raise OSError(f"no membarrier(2) is known for {os.uname().machine}")
    if _libc.syscall(number, MEMBARRIER_GLOBAL_EXPEDITED, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"membarrier(2): {os.strerror(code)}")


_libc: Final = ctypes.CDLL(None, use_errno=True)
