"""Fixtures of the client against a real daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tests.fixtures.faces import Face

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fixtures.daemons import DaemonProcess


@pytest.fixture(params=["sync-lane", "sync-grpc", "aio-lane", "aio-grpc"])
def face(request: pytest.FixtureRequest) -> Face:
    """One face of the client after the other, over the lane and over gRPC alone."""
    name, _, road = request.param.partition("-")
    return Face(name, lane=road == "lane")


@pytest_asyncio.fixture
async def pool(daemon: DaemonProcess, face: Face) -> AsyncIterator[Any]:
    """A pool on `daemon`."""
    made = await face.connect(daemon.address)
    yield made
    await face.call(made.close)
