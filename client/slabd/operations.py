"""Every operation on a pool, written once: coroutines over a session, driven by threads and by asyncio alike."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from slabd import arguments, errors
from slabd.failures import error_of_item, is_ambiguous
from slabd.handle import Handle
from slabd.holding import BlockName, GrantedBlock, Holding, let_go
from slabd.returning import BATCH_ITEMS
from slabd.stats import Stats, UsableSize
from slabd.transport import GET_STATS, GET_USABLE_SIZE, LEASE, OPEN, READ_BLOCK, SHARE, WRITE_BLOCK, Deadline
from slabd_proto.v1 import pool_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

    from slabd.holding import Returnable, Term
    from slabd.session import Session

_PIECE_BYTES: Final = 64 * 1024
# "For ever" is a day at a time: a request that outlives its daemon's patience is made again.
_LONGEST_WAIT_SECONDS: Final = 86_400.0
_LEAST_WAIT_SECONDS: Final = 0.001


async def lease(  # an operation's arguments
    session: Session,
    sizes: Sequence[Any],
    *,
    alignment: Any,
    label: str,
    timeout: float | None,  # noqa: ASYNC109  # the wait in the daemon's queue
    call_site: str,
) -> list[Holding]:
    """Lease blocks, all or none; wait up to `timeout` seconds (None: for ever) while the heap is full."""
    session.check_usable()
    aligned = arguments.alignment(alignment)
    items = [pool_pb2.LeaseItem(size=arguments.size(size), alignment=aligned) for size in sizes]
    if not items:
        return []
    _check_batch(len(items), "sizes")
    request = pool_pb2.LeaseRequest(session=session.key, items=items, label=arguments.label(label), call_site=call_site)
    patience = arguments.seconds(timeout, "a timeout")
    wait = Deadline(patience)
    if session.returning.has_work():
        await session.returning.drain()
    while True:
        returned = session.returning.blocks_returned
        try:
            return await _lease_once(session, request, wait, waits=patience != 0)
        except errors.LeaseTimeout:
            if wait.remaining is not None:
                raise
        except errors.TooLarge:
            raise
        except errors.OutOfMemory:
            # What the garbage collector has found meanwhile may be all that was missing.
            await session.returning.drain()
            if session.returning.blocks_returned == returned:
                raise


async def _lease_once(
    session: Session, request: pool_pb2.LeaseRequest, wait: Deadline, *, waits: bool
) -> list[Holding]:
    request.sequence = session.returning.next_sequence()
    transport = session.line.transport
    remaining = _LONGEST_WAIT_SECONDS if wait.remaining is None else wait.remaining
    patience = Deadline(remaining)

    async def attempt(seconds: float) -> pool_pb2.LeaseResponse:
        if not waits:
            return await transport.unary(LEASE, request, seconds)
        left = max(patience.remaining or 0.0, _LEAST_WAIT_SECONDS)
        request.timeout.CopyFrom(arguments.duration(left))
        return await transport.waiting(LEASE, request, seconds)

    async def repeat() -> list[GrantedBlock]:
        request.ClearField("timeout")
        response = await session.line.call(lambda seconds: transport.unary(LEASE, request, seconds))
        return [_granted(block, owned=True) for block in response.blocks]

    request = pool_pb2.LeaseRequest.FromString(request.SerializeToString())
    with _settling(session, repeat):
        response = await session.line.call(attempt, Deadline(remaining + session.settings.call_timeout))
        holdings = session.adopt([(block, True) for block in response.blocks])
    if session.cache is not None and len(holdings) == 1:
        session.cache.keep(holdings[0], request.items[0].alignment)
    return holdings


@contextmanager
def _settling(session: Session, repeat: Callable[[], Awaitable[list[GrantedBlock]]]) -> Iterator[None]:
    """When the block ends without the caller getting what the daemon may have granted, have that given back."""
    try:
        yield
    except errors.SlabdError as error:
        if is_ambiguous(error):
            session.returning.settle_later(repeat)
        raise
    except BaseException:  # cancelled, or interrupted
        session.returning.settle_later(repeat)
        raise


async def release(session: Session, terms: Sequence[Term]) -> None:
    """Give blocks back: all of them, or none when one is still in use.

    Raises:
        BufferError: views of one of them are exported; nothing has changed.
    """
    session.check_usable()
    ended = [term for term in terms if not term.holding.released and term.holding.end_cycle(term.cycle)]
    group = [term.holding for term in ended]

    def claim(into: list[Returnable | None]) -> None:
        let_go(group)
        session.holdings.claim_let_go(group, into)

    try:
        results = await session.returning.give_back(claim)
    except BaseException as error:
        for holding in group:
            holding.resign()
            if isinstance(error, BufferError):
                holding.undo_cycle()
        raise
    if failure := _first_error(results):
        raise failure


async def leave(session: Session, term: Term, *, failing: bool) -> None:
    """End a with-block: release, but never mask the exception that ends the block already."""
    if session.inherited or session.ended or term.over:
        return
    try:
        await release(session, [term])
    except BufferError:
        if not failing:
            raise
        term.holding.forget()  # the block returns when its last view is gone
    except errors.SlabdError:
        if not failing:
            raise


async def share(session: Session, terms: Sequence[Term], *, opens: Any, ttl: float | None) -> list[Handle]:
    """Make a handle for each block."""
    session.check_usable()
    count, life = arguments.opens(opens), arguments.seconds(ttl, "a time to live")
    for term in terms:
        term.check()
    if not terms:
        return []
    _check_batch(len(terms), "leases")
    group = [term.holding for term in terms]
    items = [_share_item(holding, count, life, transfer=False) for holding in group]
    for term in terms:
        term.pin()
        term.holding.promised += count
    results = await _share(session, group, items)
    return [Handle.from_proto(result.handle) for result in results]


def share_at_once(session: Session, term: Term, opens: Any, ttl: float | None) -> Handle | None:
    """Make a handle over the lane, without asking; None where there is none, or the daemon has to be asked."""
    holding = term.holding
    cache = holding.cache
    if cache is None:
        return None
    session.check_usable()
    count, life = arguments.opens(opens), arguments.seconds(ttl, "a time to live")
    size = holding.size
    term.check()
    if not cache.share(term, count, life):
        return None
    generation = holding.name.generation
    return Handle(session.heap_id, holding.slot, generation, holding.offset, size, False, holding.usable_size)


async def transfer(session: Session, term: Term, *, ttl: float | None) -> Handle:
    """Make a handle that carries the lease itself; the lease ends here.

    When the daemon's answer is lost, the lease may be over without a handle: then it is, and the block returns.

    Raises:
        BufferError: views of the block are exported, or a forked child has one; nothing has changed.
    """
    session.check_usable()
    holding = term.holding
    _check_heirs(session, holding)
    item = _share_item(holding, 1, arguments.seconds(ttl, "a time to live"), transfer=True)
    term.check()
    if not holding.end_cycle(term.cycle):
        raise errors.LeaseReleased(f"block {holding.name} has been released")
    try:
        # First the view, then the lease: the next owner writes into memory that nobody here looks at.
        let_go([holding])
        try:
            holding.check_untouched()
            _check_heirs(session, holding)  # a child may have been forked before the view was gone
            (result,) = await _share(session, [holding], [item])
        except BaseException as error:
            if _may_have_happened(error):
                _give_up(session, holding)
            else:
                session.restore([holding])
            raise
    except (BufferError, errors.SlabdError) as error:
        if not _may_have_happened(error):
            holding.undo_cycle()
        raise
    session.holdings.claim([holding.serial], [])
    return Handle.from_proto(result.handle)


def _may_have_happened(error: BaseException) -> bool:
    """Whether the daemon may have done what a call that ended so was for."""
    return is_ambiguous(error) if isinstance(error, errors.SlabdError) else not isinstance(error, BufferError)


def _give_up(session: Session, holding: Holding) -> None:
    """Give a block back whose lease may be another session's by now; then the daemon takes no notice."""
    holding.kind = holding.record.kind = None  # not to be leased again from the cache: it may be its next owner's
    holding.forget()
    claimed: list[Returnable | None] = []
    session.holdings.claim([holding.serial], claimed)
    session.returning.owe(claimed)


def _check_heirs(session: Session, holding: Holding) -> None:
    if session.heirs.may_touch(holding.serial):
        raise BufferError(f"block {holding.name} is still in use: a forked child has a view of it")


async def open_handles(session: Session, handles: Sequence[Any]) -> list[Holding]:
    """Open handles, all or none: when one fails, the others are closed again."""
    session.check_usable()
    parsed = [Handle.coerce(handle) for handle in handles]
    if not parsed:
        return []
    _check_batch(len(parsed), "handles")
    for handle in parsed:
        if handle.heap_id != session.heap_id:
            raise errors.StaleHandle(
                f"{handle!r} is of another heap than {session.heap!r}, or from before it was made anew"
            )
    if session.returning.has_work():
        await session.returning.drain()
    transport = session.line.transport
    request = pool_pb2.OpenRequest(
        session=session.key,
        sequence=session.returning.next_sequence(),
        handles=[handle.to_proto() for handle in parsed],
    )

    async def opened() -> list[pool_pb2.OpenResult]:
        return list((await session.line.call(lambda seconds: transport.unary(OPEN, request, seconds))).results)

    async def repeat() -> list[GrantedBlock]:
        return _successes(await opened())

    with _settling(session, repeat):
        results = await opened()
        if failure := _first_error(result.result for result in results):
            successes = _successes(results)
            await session.returning.give_back(lambda into: into.extend(successes))
            raise failure
        blocks = [(result.block, result.owner) for result in results]
    # Outside: what has been adopted must not be settled too, because to close it twice could close it for another Ref.
    return session.adopt(blocks)


def _successes(results: Iterable[pool_pb2.OpenResult]) -> list[GrantedBlock]:
    return [_granted(result.block, owned=result.owner) for result in results if error_of_item(result.result) is None]


def _first_error(results: Iterable[pool_pb2.ItemResult]) -> errors.SlabdError | None:
    return next((error for result in results if (error := error_of_item(result)) is not None), None)


async def read(session: Session, term: Term, offset: Any, length: Any) -> bytes:
    """Copy bytes out of a block."""
    term.check()
    holding = term.holding
    if session.mapped:
        view = term.view
        return bytes(_part(holding, view, *arguments.window(offset, length, _length(holding, view))))
    start, count = arguments.window(offset, length, holding.size)
    session.check_usable()
    if not count:
        return b""
    request = pool_pb2.ReadBlockRequest(session=session.key, block=_ref(holding.name), offset=start, length=count)
    transport = session.line.transport
    pieces = await session.line.call(lambda seconds: transport.download(READ_BLOCK, request, seconds))
    return b"".join(piece.data for piece in pieces)


async def write(session: Session, term: Term, data: Any, offset: Any) -> int:
    """Copy bytes into a block, and return how many."""
    term.check()
    holding = term.holding
    try:
        source = memoryview(data).cast("B")
    except TypeError as error:
        raise errors.InvalidType(f"the data is a contiguous buffer of bytes: {error}") from None
    if session.mapped:
        view = term.view
        start, count = arguments.window(offset, len(source), _length(holding, view))
        if not holding.owned or session.read_only:
            raise errors.ReadOnly(f"block {holding.name} was opened for reading")
        _part(holding, view, start, count)[:] = source
        return count
    start, count = arguments.window(offset, len(source), holding.size)
    session.check_usable()
    if count:
        transport = session.line.transport
        pieces = _pieces(session, holding, source, start)
        await session.line.call(lambda seconds: transport.upload(WRITE_BLOCK, iter(list(pieces)), seconds))
    return count


def _length(holding: Holding, view: memoryview) -> int:
    try:
        return len(view)
    except ValueError:
        raise _released(holding) from None


def _part(holding: Holding, view: memoryview, start: int, count: int) -> memoryview:
    try:
        return view[start : start + count]
    except ValueError:  # released by another thread between two lines
        raise _released(holding) from None


def _released(holding: Holding) -> errors.LeaseReleased:
    return errors.LeaseReleased(f"block {holding.name} has been released")


def _pieces(session: Session, holding: Holding, source: memoryview, start: int) -> Iterator[pool_pb2.WriteBlockRequest]:
    for position in range(0, len(source), _PIECE_BYTES):
        yield pool_pb2.WriteBlockRequest(
            session=session.key,
            block=_ref(holding.name),
            offset=start,
            data=bytes(source[position : position + _PIECE_BYTES]),
        )


async def stats(session: Session) -> Stats:
    """Read the books of the session's heap."""
    session.check_usable()
    transport, request = session.line.transport, pool_pb2.GetStatsRequest(session=session.key)
    response = await session.line.call(lambda seconds: transport.unary(GET_STATS, request, seconds))
    for heap in response.heaps:
        if heap.name == session.heap:
            return Stats.from_proto(heap)
    raise errors.UnknownHeap(f"the daemon's statistics do not mention heap {session.heap!r}")


async def usable_size(session: Session, size: Any, alignment: Any) -> UsableSize:
    """Ask which sizes get the same block."""
    session.check_usable()
    item = pool_pb2.LeaseItem(size=arguments.size(size), alignment=arguments.alignment(alignment))
    transport, request = session.line.transport, pool_pb2.GetUsableSizeRequest(session=session.key, item=item)
    response = await session.line.call(lambda seconds: transport.unary(GET_USABLE_SIZE, request, seconds))
    return UsableSize(response.min_size, response.max_size)


async def _share(
    session: Session, group: Sequence[Holding], items: Sequence[pool_pb2.ShareItem]
) -> Sequence[pool_pb2.ShareResult]:
    for holding in group:
        if holding.cache is not None:
            holding.cache.note_size(holding)
    request = pool_pb2.ShareRequest(session=session.key, sequence=session.returning.next_sequence(), items=items)
    transport = session.line.transport
    results = (await session.line.call(lambda seconds: transport.unary(SHARE, request, seconds))).results
    if failure := _first_error(result.result for result in results):
        raise failure
    return results


def _share_item(holding: Holding, opens: int, ttl: float | None, *, transfer: bool) -> pool_pb2.ShareItem:
    life = None if ttl is None else arguments.duration(ttl)
    return pool_pb2.ShareItem(block=_ref(holding.name), opens=opens, ttl=life, transfer=transfer)


def _check_batch(count: int, what: str) -> None:
    if count > BATCH_ITEMS:
        raise errors.InvalidArgument(f"one batch has at most {BATCH_ITEMS} {what}, not {count}")


def _ref(name: BlockName) -> pool_pb2.BlockRef:
    return pool_pb2.BlockRef(slot=name.slot, generation=name.generation)


def _granted(block: pool_pb2.Block, *, owned: bool) -> GrantedBlock:
    return GrantedBlock(BlockName(block.ref.slot, block.ref.generation), owned)
