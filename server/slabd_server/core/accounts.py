"""What one session has in a heap's books: the leases it owns, and the blocks of others that it has open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from slabd_server.core.chains import Chain

if TYPE_CHECKING:
    from slabd_server.core.chains import Links
    from slabd_server.core.records import SessionId, SlotId


class Account:
    """A session as the books see it: `owned` in the order of grants, `owned_bytes` their sizes, `held` its opens.

    `cached_bytes` in `cached_blocks` blocks of them it does not use, as it says (`Books.claim`). `rank` is kept by
    `holders`.
    """

    __slots__ = ("cached_blocks", "cached_bytes", "held", "id", "owned", "owned_bytes", "rank", "uid")

    def __init__(self, session_id: SessionId, uid: int | None, links: Links) -> None:
        self.id: Final = session_id
        self.uid: Final = uid
        self.owned: Final = Chain(links)
        self.owned_bytes = 0
        self.cached_bytes = 0
        self.cached_blocks = 0
        self.held: Final[dict[SlotId, None]] = {}
        self.rank = 0
