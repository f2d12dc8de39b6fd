"""Who may attach to a heap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slabd_server.core.errors import AccessDenied
from slabd_server.core.records import Access

if TYPE_CHECKING:
    from slabd_server.core.records import Peer


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Who may do what with a heap.

    A local peer is admitted when its user is among `uids` or one of its groups among `gids`; with `read_only_uids` and
    `read_only_gids` it may read only. A session over gRPC alone has no user the kernel vouches for: `remote` is the
    most it may have, None for nothing.
    """

    uids: frozenset[int]
    gids: frozenset[int] = frozenset()
    read_only_uids: frozenset[int] = frozenset()
    read_only_gids: frozenset[int] = frozenset()
    remote: Access | None = Access.READ_WRITE

    def admit(self, heap: str, peer: Peer, access: Access) -> None:
        """Let a peer in.

        Raises:
            AccessDenied: it may not have this access to the heap.
        """
        granted = self._granted(peer)
        if granted is None:
            options = "remote" if peer.uid is None else "allow_uids and allow_gids"
            raise AccessDenied(f"heap {heap} does not admit {_who(peer)}; see its {options}")
        if access is Access.READ_WRITE and granted is Access.READ_ONLY:
            raise AccessDenied(f"heap {heap} admits {_who(peer)} for reading only; attach read-only")

    def _granted(self, peer: Peer) -> Access | None:
        if peer.uid is None:
            return self.remote
        if peer.uid in self.uids or peer.gids & self.gids:
            return Access.READ_WRITE
        if peer.uid in self.read_only_uids or peer.gids & self.read_only_gids:
            return Access.READ_ONLY
        return None


def _who(peer: Peer) -> str:
    if peer.uid is None:
        return "sessions over gRPC alone"
    return f"uid {peer.uid} (pid {peer.pid}, groups {sorted(peer.gids)})"
