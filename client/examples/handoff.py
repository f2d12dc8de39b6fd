"""Hand a block from one process to another: no copy, and no question of who cleans up.

The parent fills a block in place and sends its handle, 48 bytes, through a queue. The child opens it: the same memory,
read-only.
"""

from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import slabd

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


def count_spaces(address: str, handles: Queue[slabd.Handle | None], counts: Queue[int]) -> None:
    """Work in the other process: open each block, count in place, close it."""
    with slabd.connect(address, read_only=True) as pool:
        while (handle := handles.get()) is not None:
            with pool.open(handle) as block:
                counts.put(bytes(block.view).count(b" "))


def main() -> None:
    """Send a few texts to a worker."""
    texts = ["a b c", "no_spaces", "to be or not to be"]
    context = multiprocessing.get_context("spawn")
    with slabd.start(heap_size="1MiB") as daemon, daemon.connect() as pool:
        handles: Queue[slabd.Handle | None] = context.Queue()
        counts: Queue[int] = context.Queue()
        worker = context.Process(target=count_spaces, args=(daemon.address, handles, counts))
        worker.start()
        for text in texts:
            with pool.lease(len(text), label="text") as block:
                block.view[:] = text.encode()
                handles.put(block.share())
            # The lease is over; the block waits for the worker, who was promised it.
        for text in texts:
            print(f"{text!r} has {counts.get()} spaces")
        handles.put(None)
        worker.join()
        print(f"{pool.stats().used_bytes} bytes in use at the end")


if __name__ == "__main__":
    main()
