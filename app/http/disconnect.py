"""Work for a client that may leave: the framework lets a route run on then, and here the work is cancelled."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

Result = TypeVar("Result")


CLIENT_LEFT = 499  # the status of a reply to nobody; the number is nginx's for this


class ClientLeftError(Exception):
    """Nobody waits for the reply any more."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """What the work gives; it is cancelled when the client leaves. The request's body must have been received."""
    working = asyncio.current_task()
    assert working is not None
    watching = asyncio.ensure_future(_client_leaves(receive))
    watching.add_done_callback(lambda done: None if done.cancelled() else working.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if watching.done() and not working.uncancel():
            raise ClientLeftError from None
        raise
    finally:
        watching.cancel()


async def _client_leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
