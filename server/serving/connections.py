"""Connections of HTTP clients: limits, invalid HTTP, slow readers, and shutdown."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import orjson
import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

from server.base.error_codes import ERROR_CODES
from server.base.errors import BadHttp, HeadersTooLarge, ServiceError, UriTooLong
from server.base.logs import safe_traceback
from server.serving import cors
from server.serving.app import METRICS, WIRES
from server.wires import http
from server.wires.http import SETTINGS, UNSENT, answer

log = structlog.get_logger()

# Bytes of a request's address, bytes of a header, number of headers. aiohttp has one error for both sizes,
# which names only the limit: the two must differ.
_TARGET_LIMIT, _FIELD_LIMIT, _FIELDS = 8190, 8192, 128
_HALF_CLOSED = 1.0
"""Seconds for a client to close its side of an idle connection."""
_PIPELINED = 4
_PROGRESS = 16 * 1024
"""Bytes that a client must read in each write timeout, so that no answer takes days."""


def _error_of(error: BaseException | None) -> ServiceError:
    """The error of a request that aiohttp could not parse."""
    if isinstance(error, LineTooLong) and error.args[1] == _TARGET_LIMIT:
        return UriTooLong(f"the address is longer than {_TARGET_LIMIT} bytes")
    if isinstance(error, LineTooLong):
        return HeadersTooLarge(f"a header is longer than {_FIELD_LIMIT} bytes")
    if isinstance(error, BadHttpMessage) and error.message == "Too many headers received":
        return HeadersTooLarge(f"there are more than {_FIELDS} headers")
    return BadHttp()


class _Connection(RequestHandler):
    """aiohttp's connection, except for invalid HTTP, clients that do not read, and shutdown.

    aiohttp answers invalid HTTP with a page that quotes it, and logs it: an API key with a control character
    would be in both in clear. This class does neither.

    A client that does not read its answer is disconnected after the write timeout; aiohttp has no such limit.
    """

    __slots__ = ("_check", "_owner", "_server", "_size", "_unread", "_writing")

    def __init__(self, server: "_Server", **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        # Owner (see Calls) and bytes of the latest answer.
        self._owner = self._size = 0
        # While the client has not read it: the transport, the bytes left at the last check, the next check.
        self._writing: asyncio.Transport | None = None
        self._unread = 0
        self._check: asyncio.TimerHandle | None = None
        # Pipelined requests that wait, each with headers and body. aiohttp's limit is 32.
        self._max_msg_queue_size, self._msg_queue_resume_size = _PIPELINED, _PIPELINED // 2

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # resume_writing is then called when the kernel has the whole answer.
        cast(asyncio.Transport, transport).set_write_buffer_limits(0)
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._sent()
        super().connection_lost(exc)

    def finish_response(
        self, request: BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        calls = request.get(http.CALLS)
        self._owner = calls.owner if calls else 0
        self._size = len(resp.body) if isinstance(resp, web.Response) and isinstance(resp.body, bytes) else 0
        if self._server.ending and not self._messages:
            resp.force_close()  # sends Connection: close
        return super().finish_response(request, resp, start_time)

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        super().pause_writing()
        if self.transport is None:
            return
        self._writing = self.transport
        self._unread = self._writing.get_write_buffer_size()
        self._check = self._loop.call_later(self._server.write_timeout, self._expect_progress)
        self._server.unsent.wait(self._owner, self, max(self._size, self._unread))

    def resume_writing(self) -> None:
        """The socket's buffer has the rest of the answer."""
        super().resume_writing()
        self._sent()

    def half_close(self) -> None:
        """Close our side of an idle connection. A request that the client is sending does not run.

        It is read and ignored (RFC 9112, section 9.6): closing both sides would reset the connection.
        """
        if self._waiter is not None and not self._messages and self.transport is not None:
            self.transport.write_eof()

    def drop(self) -> None:
        """Disconnect a client that does not read."""
        if self._writing is not None:
            log.info("client_does_not_read", unread=self._writing.get_write_buffer_size())
            self._writing.abort()

    def _sent(self) -> None:
        if self._writing is not None and self._check is not None:
            self._check.cancel()
            self._writing = self._check = None
            self._server.unsent.done(self._owner, self)

    def _expect_progress(self) -> None:
        assert self._writing is not None
        left = self._writing.get_write_buffer_size()
        if self._unread - left < min(_PROGRESS, self._unread):
            self.drop()
            return
        self._unread = left
        self._check = self._loop.call_later(self._server.write_timeout, self._expect_progress)

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):
            raise exc  # the client has disconnected; the boundary has logged it
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer has been sent")
        error = _error_of(exc) if status == 400 else ServiceError()
        status = ERROR_CODES[error.code].status
        cause = safe_traceback(exc) if exc is not None and status >= 500 else type(exc).__name__
        request_id = http.request_id_of(None)
        log.warning(error.code, status=status, request_id=request_id, error=cause)
        response = answer(
            status, orjson.dumps(error.message), {"X-Request-Id": request_id, "X-Error-Code": error.code}
        )
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, original: web.Server, app: web.Application, idle_grace: Callable[[], float]) -> None:
        """
        Args:
            original: aiohttp's server for the application.
            idle_grace: see Runner.
        """
        settings = app[SETTINGS]
        handler = http.error_boundary(cast(http.Handler, original.request_handler), WIRES, app[METRICS])
        if settings.cors_origins:
            handler = cors.allowing(settings.cors_origins, handler)
        super().__init__(
            cast(Any, handler),
            request_factory=original.request_factory,
            loop=original._loop,
            **original._kwargs,
        )
        self.unsent = app[UNSENT]
        self.write_timeout = settings.write_timeout
        self.ending = False
        self._idle_grace = idle_grace

    def pre_shutdown(self) -> None:
        """No new connections are accepted; the others end with their next answer."""
        self.ending = True

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait for clients, then end idle connections, then wait for running calls.

        Args:
            timeout: seconds for running calls.
        """
        await self._wait_for_clients(self._idle_grace())
        for connection in self.connections:
            cast(_Connection, connection).half_close()
        super().pre_shutdown()
        await self._wait_for_clients(_HALF_CLOSED)
        await super().shutdown(timeout)

    async def _wait_for_clients(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        while self._connections and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an application with our limits of connections and our errors.

    The error boundary wraps the application. As a middleware it would be slower, and would miss requests that
    aiohttp refuses before any middleware.
    """

    def __init__(
        self,
        app: web.Application,
        idle_grace: Callable[[], float] = lambda: 0.0,
        *,
        keeps_connections: bool = True,
    ) -> None:
        """
        Args:
            app: made by create_app.
            idle_grace: called at shutdown: seconds for idle clients to send another request, whose answer
                has Connection: close.
            keeps_connections: False: each connection ends with its answer (Connection: close).
        """
        settings = app[SETTINGS]
        self._idle_grace, self._keeps_connections = idle_grace, keeps_connections
        super().__init__(
            app,
            access_log=None,  # calls are logged without query strings
            keepalive_timeout=settings.keepalive_timeout,
            shutdown_timeout=settings.shutdown_timeout,
            lingering_time=0,
            max_line_size=_TARGET_LIMIT,
            max_field_size=_FIELD_LIMIT,
            max_headers=_FIELDS,
        )

    async def _make_server(self) -> web.Server:
        server = _Server(await super()._make_server(), self.app, self._idle_grace)
        server.ending = not self._keeps_connections
        return server
