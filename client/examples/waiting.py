"""A full heap is waited for: first come first served, with a deadline, and with errors one can act upon."""

from __future__ import annotations

import threading
import time

import slabd


def main() -> None:
    """Fill the heap, wait in vain, then wait with success."""
    with slabd.start(heap_size="1MiB") as daemon, daemon.connect() as pool:
        everything = pool.lease(pool.heap_bytes, label="everything")

        try:
            pool.lease(4096)
        except slabd.OutOfMemory as error:  # a MemoryError, too
            print(f"without a timeout: {type(error).__name__}: {error}")

        try:
            pool.lease(4096, timeout=0.2)
        except slabd.LeaseTimeout as error:  # an OutOfMemory, and a TimeoutError
            print(f"after 0.2 seconds: {type(error).__name__}: {error}")

        try:
            pool.lease(pool.heap_bytes + 1, timeout=60)
        except slabd.TooLarge as error:  # waiting would never help, so it does not wait
            print(f"at once: {type(error).__name__}: {error}")

        threading.Timer(0.3, everything.release).start()
        begin = time.monotonic()
        with pool.lease(4096, timeout=10) as block:
            waited = time.monotonic() - begin
            print(f"{block.size} bytes after {'more' if waited > 0.1 else 'less'} than 0.1 seconds of waiting")  # noqa: PLR2004


if __name__ == "__main__":
    main()
