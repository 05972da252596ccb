"""Composition root: settings in, a running application out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any, cast

import orjson
import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest

import server.methods  # noqa: F401  # fills the registry
from server.analyze import keep_analyzing
from server.auth import KeyRing
from server.db import Database
from server.dispatch import Dispatcher
from server.error_codes import ERROR_CODES
from server.errors import BadHttp, HeadersTooLarge, ServiceError, Unavailable, UriTooLong
from server.fronts import (
    _cors,
    _http,
    _online_office_openapi,
    _publica_openapi,
    files,
    online_office,
    publica,
    rpc,
    workspace365,
)
from server.fronts._http import (
    DISPATCHER,
    INSTANCE_LIMITER,
    KEYS,
    LARGE_BODIES,
    LIMITER,
    SETTINGS,
    UNSENT,
    Front,
    answer,
    large_bodies,
    safe_traceback,
)
from server.jobs import Services, keep_purging, work
from server.limits import RateLimiter
from server.metrics import Metrics
from server.openapi import document
from server.passwords import PasswordHasher
from server.pictures import Pictures
from server.registry import METHODS, Method
from server.settings import Settings
from server.unsent import Unsent
from server.webhooks import keep_delivering

log = structlog.get_logger()

FRONTS: tuple[Front, ...] = (
    rpc.FRONT,
    files.FRONT,
    *online_office.FRONTS,
    workspace365.FRONT,
    publica.FRONT,
)
DESCRIPTIONS = (
    files.describe,
    _online_office_openapi.describe,
    workspace365.describe,
    _publica_openapi.describe,
)
DATABASE = web.AppKey("DATABASE", Database)
METRICS = web.AppKey("METRICS", Metrics)
_LAG_EVERY = 0.05
# Bytes of a request's address, bytes of a header, number of headers. aiohttp raises one error for both sizes,
# which names the limit alone, so the two have to differ.
_TARGET_LIMIT, _FIELD_LIMIT, _FIELDS = 8190, 8192, 128
_HALF_CLOSED = 1.0
"""Seconds that a client gets to close its side of an idle connection."""
_PIPELINED = 4
_PROGRESS = 16 * 1024
"""Bytes that a client has to read in each write timeout; one by one it could hold an answer for days."""


def build(
    settings: Settings,
    database_url: str,
    *,
    methods: Mapping[str, Method] = METHODS,
    check_results: bool = False,
) -> tuple[Database, KeyRing, PasswordHasher, Dispatcher]:
    """The parts beneath the fronts, put together but not yet opened; see create_app for the arguments."""
    database = Database(settings, database_url)
    keys = KeyRing(database, settings.key_cache_size)
    hasher = PasswordHasher(settings)
    dispatcher = Dispatcher(
        methods, settings, database, keys, hasher, Pictures(settings), Metrics(), check_results=check_results
    )
    return database, keys, hasher, dispatcher


def create_app(
    settings: Settings,
    database_url: str,
    *,
    methods: Mapping[str, Method] = METHODS,
    check_results: bool = False,
) -> web.Application:
    """The application with all its fronts.

    Args:
        settings: read from the environment.
        database_url: a migrated database; it may be away when the application starts.
        methods: the registry.
        check_results: hold every answer against its result model, as the tests do.
    """
    app = web.Application()
    app[SETTINGS] = settings
    app[LARGE_BODIES] = large_bodies()
    app[LIMITER] = RateLimiter(settings.key_rate_limit, keys=settings.key_cache_size)
    app[INSTANCE_LIMITER] = RateLimiter(settings.instance_rate_limit, keys=settings.key_cache_size)
    app[publica.LIMITER] = RateLimiter(settings.rate_limit, keys=settings.key_cache_size)
    database, keys, hasher, dispatcher = build(
        settings, database_url, methods=methods, check_results=check_results
    )
    metrics = dispatcher.metrics
    app[UNSENT] = Unsent(settings.unsent_limit, metrics.unsent)
    app[DATABASE], app[KEYS], app[DISPATCHER], app[METRICS] = database, keys, dispatcher, metrics

    working: list[asyncio.Task[None]] = []

    async def running(app: web.Application) -> AsyncIterator[None]:
        await database.open()
        tasks = [
            asyncio.create_task(keys.listen()),
            asyncio.create_task(_watch_lag(metrics)),
            asyncio.create_task(keep_analyzing(database)),
        ]
        if settings.run_jobs:
            services = Services(settings, database, metrics)
            working.append(asyncio.create_task(work(services)))
            tasks.append(asyncio.create_task(keep_purging(database, settings)))
            tasks.append(asyncio.create_task(keep_delivering(settings, database, metrics)))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *working, return_exceptions=True)
        hasher.close()
        dispatcher.pictures.close()
        await database.close()

    async def stop_working(app: web.Application) -> None:
        for task in working:  # jobs have as long to finish as the calls that run, beside them
            task.cancel()

    app.cleanup_ctx.append(running)
    app.on_shutdown.append(stop_working)
    for front in FRONTS:
        front.add_routes(app.router)
    app.router.add_route("GET", "/", _index)
    app.router.add_route("GET", "/openapi.json", _openapi)
    app.router.add_route("GET", "/livez", _alive)
    app.router.add_route("GET", "/readyz", _ready)
    app.router.add_route("GET", "/metrics", _metrics)
    _add_head(app.router)
    return app


def _add_head(router: web.UrlDispatcher) -> None:
    """HEAD wherever GET is (RFC 9110, section 9.1), except at /rpc.

    GET /rpc is a call that may write; HEAD must not, and would lose the result.
    """
    routes = {(route.resource, route.method): route for route in router.routes()}
    for (resource, verb), route in routes.items():
        if verb != "GET" or (resource, "HEAD") in routes or not isinstance(resource, web.Resource):
            continue
        if resource.canonical.rstrip("/") != "/rpc":
            resource.add_route("HEAD", route.handler)


def create_waiting_app(settings: Settings) -> web.Application:
    """What answers while the database is being prepared: live, not ready, and 503 on every wire."""
    app = web.Application()
    app[SETTINGS], app[METRICS] = settings, Metrics()
    app[UNSENT] = Unsent(settings.unsent_limit, app[METRICS].unsent)

    async def unavailable(request: web.Request) -> web.Response:
        raise Unavailable(retry_after=1)

    async def close_connection(request: web.Request, response: web.StreamResponse) -> None:
        response.force_close()  # the workers take the port over

    app.router.add_route("GET", "/livez", _alive)
    app.router.add_route("*", "/{path:.*}", unavailable)
    app.on_response_prepare.append(close_connection)
    return app


@lru_cache(maxsize=1)
def openapi(methods: tuple[Method, ...] = tuple(METHODS.values())) -> bytes:
    """The OpenAPI document of the REST fronts, as JSON."""
    return orjson.dumps(document(methods, DESCRIPTIONS))


async def _openapi(request: web.Request) -> web.Response:
    """The OpenAPI document, for everybody: it holds nothing that is not published."""
    methods = tuple(request.app[DISPATCHER].methods.values())
    return answer(200, await asyncio.to_thread(openapi, methods), {"Cache-Control": "public, max-age=300"})


_INDEX = {
    "name": "officerpc",
    "rpc": "/rpc",
    "openrpc": {
        "method": "rpc.discover",
        "url": "/rpc",
        "tells": "every method of /rpc, as an OpenRPC document; needs a key with the scope docs:read",
    },
    "openapi": {"url": "/openapi.json", "tells": "the REST wires, as an OpenAPI document; needs no key"},
    "errors": "components/errors of the OpenRPC document, or: officerpc errors",
    "health": ["/livez", "/readyz"],
}
_INDEX_PAGE = b"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>officerpc</title>
<h1>officerpc</h1>
<p>A user-provisioning server. Calls go to <code>POST /rpc</code> with an API key in the header
<code>x-api-key</code>.</p>
<ul>
<li><code>{"method": "rpc.discover"}</code>, sent to <code>/rpc</code>: every method and error code, as an
OpenRPC document.</li>
<li><a href="/openapi.json">/openapi.json</a>: the REST wires, as an OpenAPI document.</li>
<li><a href="/livez">/livez</a>, <a href="/readyz">/readyz</a>: whether the server runs and takes writes.</li>
</ul>
<p>README.md, server/methods/README.md and server/fronts/README.md of the source say more; so does
<code>officerpc --help</code>.</p>
</html>
"""


async def _index(request: web.Request) -> web.Response:
    """What leads to the documents: a page for browsers, which ask for HTML by name, else JSON."""
    headers = {"Cache-Control": "public, max-age=300", "Vary": "Accept"}
    if "text/html" not in request.headers.get("Accept", "").lower():
        return answer(200, orjson.dumps(_INDEX, option=orjson.OPT_INDENT_2) + b"\n", headers)
    headers["Content-Security-Policy"] = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    headers["Referrer-Policy"] = "no-referrer"
    response = answer(200, _INDEX_PAGE, headers)
    response.content_type, response.charset = "text/html", "utf-8"
    return response


async def _alive(request: web.Request) -> web.Response:
    """200 as long as the event loop turns."""
    return answer(200, b'{"status":"alive"}')


async def _ready(request: web.Request) -> web.Response:
    """200 while the database takes writes, 503 otherwise."""
    writable = False
    with contextlib.suppress(ServiceError, TimeoutError):
        async with asyncio.timeout(2):
            writable = await request.app[DATABASE].writable()
    return (
        answer(200, b'{"status":"ready"}') if writable else answer(503, b'{"status":"database not writable"}')
    )


async def _metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    response = answer(200, request.app[DISPATCHER].metrics.exposition())
    response.content_type = "text/plain; version=0.0.4"
    return response


async def _watch_lag(metrics: Metrics) -> None:
    loop, worst, until = asyncio.get_running_loop(), 0.0, 0.0
    while True:
        due = loop.time() + _LAG_EVERY
        await asyncio.sleep(_LAG_EVERY)
        now = loop.time()
        if now > until:
            worst, until = 0.0, now + 60
        if now - due > worst:
            worst = now - due
            metrics.lag(worst)


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
        calls = request.get(_http.CALLS)
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
        request_id = _http.request_id_of(None)
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
        handler: _http.Handler,
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

    def __init__(self, app: web.Application, patience: Callable[[], float] = lambda: 0.0) -> None:
        """
        Args:
            app: made by create_app.
            patience: seconds that idle clients get at the end, asked for then.
        """
        settings = app[SETTINGS]
        self._patience = patience
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
        handler = _http.within_boundary(cast(_http.Handler, made.request_handler), FRONTS, app[METRICS])
        if origins := app[SETTINGS].cors_origins:
            handler = _cors.allowing(origins, handler)
        return _Server(made, handler, app[UNSENT], app[SETTINGS].write_timeout, self._patience)
