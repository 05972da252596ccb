"""Connections of HTTP clients: their limits, requests that are no HTTP, and how they end."""

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
from server.base.unsent import Unsent
from server.serving import cors
from server.serving.app import METRICS, WIRES
from server.wires import http
from server.wires.http import SETTINGS, UNSENT, answer

log = structlog.get_logger()

# Bytes of a request's address, bytes of a header, number of headers. aiohttp raises one error for both sizes,
# which names the limit alone, so the two have to differ.
_TARGET_LIMIT, _FIELD_LIMIT, _FIELDS = 8190, 8192, 128
_HALF_CLOSED = 1.0
"""Seconds that a client gets to close its side of an idle connection."""
_PIPELINED = 4
_PROGRESS = 16 * 1024
"""Bytes that a client has to read in each write timeout; one by one it could hold an answer for days."""


def _not_http(error: BaseException | None) -> ServiceError:
    """What is told of a request that aiohttp could not read."""
    if isinstance(error, LineTooLong) and error.args[1] == _TARGET_LIMIT:
        return UriTooLong(f"the address is longer than {_TARGET_LIMIT} bytes")
    if isinstance(error, LineTooLong):
        return HeadersTooLarge(f"a header is longer than {_FIELD_LIMIT} bytes")
    if isinstance(error, BadHttpMessage) and error.message == "Too many headers received":
        return HeadersTooLarge(f"there are more than {_FIELDS} headers")
    return BadHttp()


class _Connection(RequestHandler):
    """aiohttp's connection, except for requests that are no HTTP, clients that do not read, and its end.

    aiohttp answers what is no HTTP with a text page that repeats what it could not read, and logs the same:
    an API key with a control character in it would stand in clear in both. Ours says and logs neither.

    A client that does not read its answer is disconnected after the write timeout; aiohttp would wait for it
    without end.
    """

    __slots__ = ("_check", "_owner", "_server", "_size", "_unread", "_writing")

    def __init__(self, server: "_Server", **options: Any) -> None:
        super().__init__(server, **options)
        self._server = server
        # Of the answer that is written, or was written last: whose it is and how many bytes it has.
        self._owner = self._size = 0
        # Set while the client has not read it, with the bytes left at the last check and the next check.
        self._writing: asyncio.Transport | None = None
        self._unread = 0
        self._check: asyncio.TimerHandle | None = None
        # Pipelined requests that wait, each with its headers and body. aiohttp takes 32.
        self._max_msg_queue_size, self._msg_queue_resume_size = _PIPELINED, _PIPELINED // 2

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # An answer is written when the kernel has all of it: nothing is left behind unseen.
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
            resp.force_close()  # says Connection: close: the client opens another for its next request
        return super().finish_response(request, resp, start_time)

    def pause_writing(self) -> None:
        """Not all of an answer fits into the socket's buffer."""
        super().pause_writing()
        if self.transport is None:
            return
        self._writing = self.transport
        self._unread = self._writing.get_write_buffer_size()
        self._check = self._loop.call_later(self._server.write_timeout, self._expect_progress)
        self._server.unsent.wait(self._owner, self, max(self._size, self._unread))

    def resume_writing(self) -> None:
        """The client has read so much that the rest fits."""
        super().resume_writing()
        self._sent()

    def half_close(self) -> None:
        """End a connection without a request; one that the client sends at this moment is not run.

        It is read and thrown away (RFC 9112, section 9.6): closing at once would reset the connection.
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
            raise exc  # the client is gone, which the boundary has noted
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun, there is no room for another")
        error = _not_http(exc) if status == 400 else ServiceError()
        status = ERROR_CODES[error.code].status
        told = safe_traceback(exc) if exc is not None and status >= 500 else type(exc).__name__
        request_id = http.request_id_of(None)
        log.warning(error.code, status=status, request_id=request_id, error=told)
        response = answer(
            status, orjson.dumps(error.message), {"X-Request-Id": request_id, "X-Error-Code": error.code}
        )
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(
        self,
        made: web.Server,
        handler: http.Handler,
        unsent: Unsent,
        write_timeout: float,
        patience: Callable[[], float],
    ) -> None:
        """
        Args:
            made: as aiohttp makes it for the application.
            handler: around the whole application.
            unsent: counts what clients do not read.
            write_timeout: seconds after which they are disconnected.
            patience: seconds that idle clients get at the end to send a request and be told with its answer.
        """
        super().__init__(
            cast(Any, handler), request_factory=made.request_factory, loop=made._loop, **made._kwargs
        )
        self.unsent = unsent
        self.write_timeout = write_timeout
        self.ending = False
        self._patience = patience

    def pre_shutdown(self) -> None:
        """No connection is accepted any more; those that there are end with their next answer."""
        self.ending = True

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109
        """Wait for the clients, then end the connections that are idle, then wait for the calls that run.

        Args:
            timeout: seconds for those calls.
        """
        await self._emptied(self._patience())
        for connection in self.connections:
            cast(_Connection, connection).half_close()
        super().pre_shutdown()
        await self._emptied(_HALF_CLOSED)
        await super().shutdown(timeout)

    async def _emptied(self, seconds: float) -> None:
        until = self._loop.time() + seconds
        while self._connections and self._loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Serves an application with our limits on connections, and nothing of aiohttp's own shows.

    The boundary is no middleware but around the application, which costs each request less and also takes
    what aiohttp refuses before any middleware.
    """

    def __init__(
        self,
        app: web.Application,
        patience: Callable[[], float] = lambda: 0.0,
        *,
        keeps_connections: bool = True,
    ) -> None:
        """
        Args:
            app: made by create_app.
            patience: seconds that idle clients get at the end, asked for then.
            keeps_connections: False: each ends with its answer, which says so (Connection: close).
        """
        settings = app[SETTINGS]
        self._patience, self._keeps_connections = patience, keeps_connections
        super().__init__(
            app,
            access_log=None,  # each call is logged by what it was, without its query string
            keepalive_timeout=settings.keepalive_timeout,
            shutdown_timeout=settings.shutdown_timeout,
            lingering_time=0,
            max_line_size=_TARGET_LIMIT,
            max_field_size=_FIELD_LIMIT,
            max_headers=_FIELDS,
        )

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        app = self.app
        handler = http.error_boundary(cast(http.Handler, made.request_handler), WIRES, app[METRICS])
        if origins := app[SETTINGS].cors_origins:
            handler = cors.allowing(origins, handler)
        server = _Server(made, handler, app[UNSENT], app[SETTINGS].write_timeout, self._patience)
        server.ending = not self._keeps_connections
        return server
