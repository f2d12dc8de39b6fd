"""The same with asyncio: what returns a block is awaited, or entered with `async with`."""

from __future__ import annotations

import asyncio

import slabd


async def produce(pool: slabd.aio.AsyncPool, handles: asyncio.Queue[slabd.Handle], count: int) -> None:
    """Fill blocks and send them on, each with its lease: the consumer owns it then."""
    for number in range(count):
        # The heap holds two of these: the third waits until the consumer has given one back.
        block = await pool.lease(400_000, timeout=10, label=f"frame {number}")
        block.view[:4] = number.to_bytes(4, "little")
        await handles.put(await block.transfer())


async def consume(pool: slabd.aio.AsyncPool, handles: asyncio.Queue[slabd.Handle], count: int) -> None:
    """Take blocks over and give them back."""
    for _ in range(count):
        async with pool.open(await handles.get()) as block:
            number = int.from_bytes(block.view[:4], "little")
            print(f"frame {number}: {block.size} bytes at offset {block.offset:#x}")
            await asyncio.sleep(0.01)


async def main() -> None:
    """Run a producer and a consumer over a heap that is too small for all frames at once."""
    handles: asyncio.Queue[slabd.Handle] = asyncio.Queue()
    with slabd.start(heap_size="1MiB") as daemon:
        async with slabd.aio.connect(daemon.address) as pool:
            await asyncio.gather(produce(pool, handles, 6), consume(pool, handles, 6))
            print(f"{(await pool.stats()).used_bytes} bytes in use at the end")


if __name__ == "__main__":
    asyncio.run(main())
