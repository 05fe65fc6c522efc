"""No request may send more than the server takes, whichever route it asks, MONAI Label's own included."""

import asyncio
import json
from contextlib import suppress

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lib.errors import TooLargeError

LINGER_SECONDS = 10.0


def limit_bodies(server: FastAPI, limit_mb: int) -> None:
    """Bodies above `limit_mb` MB are answered 413, also in a server that is just starting."""
    # Appended, it is inside the middleware that adds the CORS headers: a viewer from another origin reads the text.
    server.user_middleware.append(Middleware(BodyLimit, limit_mb=limit_mb))
    # The stack exists by now, since it runs the start itself. Without one the next request builds it again.
    server.middleware_stack = None


class BodyLimit:
    """ASGI middleware: refuses what is announced as too large at once, and cuts what turns out to be."""

    def __init__(self, app: ASGIApp, limit_mb: int) -> None:
        self._app, self._limit_mb = app, limit_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_mb << 20
        announced = int(Headers(scope=scope).get("content-length", "0"))
        if announced > limit:
            await self._refuse(f"{announced} bytes", receive, send)
            return
        body = _CountedBody(limit, receive, send)
        try:
            await self._app(scope, body.receive, body.send)
        except HTTPException:
            if not body.is_cut:
                raise
        if body.is_cut:
            await self._refuse(f"over {limit} bytes", body.rest, send)

    async def _refuse(self, found: str, receive: Receive, send: Send) -> None:
        error = TooLargeError("body", found, f"at most {self._limit_mb} MB (max_body_mb)")
        content = json.dumps({"detail": str(error)}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(content)).encode()),
            (b"connection", b"close"),
        ]
        await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": True})
        # A connection that is closed on a client that still sends is reset, and the answer is lost with it. So what
        # comes is thrown away for a while.
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive()).get("more_body", False):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _CountedBody:
    """What one request sends, until it is more than `limit` bytes; then nothing of the app's answer goes out."""

    def __init__(self, limit: int, receive: Receive, send: Send) -> None:
        self._limit, self._receive, self._send = limit, receive, send
        self._size = 0
        self._ended = self._answered = False

    @property
    def is_cut(self) -> bool:
        """Whether too much came before anything was answered."""
        return self._size > self._limit and not self._answered

    async def receive(self) -> Message:
        message = await self.rest()
        self._size += len(message.get("body", b""))
        if self.is_cut:
            raise HTTPException(TooLargeError.http_status)  # ends the reading, whoever reads
        return message

    async def rest(self) -> Message:
        """The next message, uncounted; after the last one nobody sends any more, and there is nothing to wait for."""
        if self._ended and self.is_cut:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if not self.is_cut:
            self._answered = True
            await self._send(message)
