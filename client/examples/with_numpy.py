"""numpy arrays in the heap: the memory returns when the last array over it is gone."""

from __future__ import annotations

import numpy as np

import slabd


def main() -> None:
    """Make an array, drop it, and fill a shared block through an array."""
    with slabd.start(heap_size="16MiB") as daemon, daemon.connect() as pool:
        image = pool.zeros((480, 640, 3), dtype=np.uint8, label="image")
        image[100:200, 100:200] = 255
        row = image[150]
        del image
        print(f"one row keeps the image: {pool.stats().used_bytes} bytes, its mean is {row.mean():.2f}")
        del row

        with pool.lease(8 * 1000, label="samples") as block:
            samples = np.frombuffer(block.view, dtype=np.float64)
            samples[:] = np.linspace(0.0, 1.0, len(samples))
            handle = block.share()
            del samples  # as long as it lives, the block cannot be given back: release() would raise BufferError

        with pool.open(handle) as block:
            print(f"what was shared adds up to {np.frombuffer(block.view, dtype=np.float64).sum():.1f}")


if __name__ == "__main__":
    main()
