"""How blocks find their way back to the daemon.

Promises:

- A block is given back only when nothing here can touch it (slabd.holding), nor a forked child (slabd.heirs), and then
  it is: at once, or, when the daemon does not answer, by the housekeeping as soon as it does.
- A call that was given up (cancelled, interrupted, unanswered) and may have been granted all the same is *settled*:
  made again with the same sequence number, which the daemon answers as it did the first time, and what that had granted
  is given back.

Must not know how the session ends; when it is `lost`, its end has taken everything back.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from slabd import errors
from slabd.failures import is_silence
from slabd.transport import CLOSE, RELEASE
from slabd_proto.v1 import pool_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from slabd.cache import Cache
    from slabd.calls import Line
    from slabd.heirs import Heirs
    from slabd.holding import Holdings, Returnable
    from slabd.transport import Rpc

BATCH_ITEMS: Final = 4096


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A call whose outcome is unknown: `repeat` makes it again and returns the blocks it got."""

    repeat: Callable[[], Awaitable[Sequence[Returnable]]]


@dataclass(frozen=True, slots=True)
class Errand:
    """A request that gives blocks back. However often it is made, its sequence number makes it one."""

    rpc: Rpc[Any, Any]
    request: Any


class Returning:
    """What one session has to give back, and how it does."""

    def __init__(
        self,
        key: pool_pb2.SessionKey,
        line: Line,
        holdings: Holdings,
        heirs: Heirs,
        hung_up: Callable[[], bool],
    ) -> None:
        self._key = key
        self._line = line
        self._transport = line.transport
        self._holdings = holdings
        self._heirs = heirs
        self._hung_up = hung_up
        self._sequences = itertools.count(1)
        self._unsettled: deque[Unsettled] = deque()
        self._owed: deque[Errand] = deque()
        self.cache: Cache | None = None
        self.lost = False
        self.blocks_returned = 0

    def next_sequence(self) -> int:
        """Return the number of the next request that changes something."""
        return next(self._sequences)

    def owe(self, blocks: Sequence[Returnable | None]) -> None:
        """Have the housekeeping give blocks back."""
        self._owed.extend(self._errands(blocks))
        self._transport.wake()

    async def give_back(self, claim: Callable[[list[Returnable | None]], None]) -> list[pool_pb2.ItemResult]:
        """Release the leases, and close the opened blocks, that `claim` takes out of the holdings.

        What the daemon does not acknowledge is owed, with its sequence number: the housekeeping tries it again.

        Raises:
            DaemonUnavailable: the daemon does not answer.
        """
        claimed: list[Returnable | None] = []
        errands: deque[Errand] | None = None
        results: list[pool_pb2.ItemResult] = []
        try:
            claim(claimed)
            errands = deque(self._errands(claimed))
            await self._run(errands, results)
        except BaseException as error:
            self._owed.extend(self._errands(claimed) if errands is None else errands)
            if self.lost and isinstance(error, errors.DaemonUnavailable):
                return results
            self._transport.wake()
            raise
        return results

    def _errands(self, claimed: Sequence[Returnable | None]) -> list[Errand]:
        """Return the requests that give blocks back, in batches that one call can carry.

        What a forked child may still touch is kept, and not among them.
        """
        present = [block for block in claimed if block is not None]
        free = [block for block in present if not self._heirs.keep(block)]
        if len(free) < len(present):
            self._transport.wake()  # the housekeeping looks more often while something is kept
        if self.cache is not None:
            left = [block for block in free if not self.cache.take_back(block)]
            self.blocks_returned += len(free) - len(left)
            return self._requests(left)
        return self._requests(free)

    def _requests(self, free: Sequence[Returnable]) -> list[Errand]:
        errands: list[Errand] = []
        for owned, rpc in ((True, RELEASE), (False, CLOSE)):
            refs = [_ref(block) for block in free if block.owned == owned]
            errands += [
                Errand(rpc, rpc.request(session=self._key, sequence=self.next_sequence(), blocks=batch))
                for batch in (refs[start : start + BATCH_ITEMS] for start in range(0, len(refs), BATCH_ITEMS))
            ]
        return errands

    async def _run(self, errands: deque[Errand], results: list[pool_pb2.ItemResult]) -> None:
        """Do errands until none is left, or the session is lost: its end has taken everything back."""
        while errands and not self.lost:
            errand = errands[0]
            try:
                response = await self._line.call(partial(self._transport.unary, errand.rpc, errand.request))
            except errors.SessionEnded:
                self.lost = True
                return
            except errors.SlabdError as error:
                self.lost = self._hung_up()
                if not is_silence(error):  # refused for good: to ask again would not help
                    errands.popleft()
                raise
            results += response.results
            self.blocks_returned += len(response.results)
            errands.popleft()

    def settle_later(self, repeat: Callable[[], Awaitable[Sequence[Returnable]]]) -> None:
        """Have the housekeeping find out what a call that was given up had granted, and give that back."""
        self._unsettled.append(Unsettled(repeat))
        self._transport.wake()

    async def drain(self) -> None:
        """Give back what was collected, what is owed, and what unsettled calls had granted."""
        async with self._transport.exclusive():
            while self._unsettled and not self.lost:
                try:
                    self._owed.extend(self._errands(await self._unsettled[0].repeat()))
                except errors.SlabdError as error:
                    if is_silence(error):
                        raise
                # An answer of any kind settles it.
                self._unsettled.popleft()
            self._owed.extend(self._errands(self._heirs.due()))
            await self._run(self._owed, [])
            while self._holdings.has_dead():
                await self.give_back(self._holdings.claim_dead)
            if self.lost:
                self._owed.clear()
                self._unsettled.clear()

    def has_work(self) -> bool:
        """Whether `drain` has something to do."""
        return self._holdings.has_dead() or bool(self._owed) or bool(self._unsettled) or self._heirs.is_due()


def _ref(block: Returnable) -> pool_pb2.BlockRef:
    return pool_pb2.BlockRef(slot=block.name.slot, generation=block.name.generation)
