"""Composition root: makes the application from the settings."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache

import orjson
from aiohttp import web

import server.rpc.discovery  # noqa: F401  # registers all methods
from server.base.errors import ServiceError, Unavailable
from server.base.metrics import Metrics
from server.base.passwords import PasswordHasher
from server.base.settings import Settings
from server.base.shares import Shares
from server.base.unsent import Unsent
from server.directory.upkeep import keep_purging
from server.events.webhooks import keep_delivering
from server.jobs.queue import Services, work
from server.methods.registry import METHODS, Method
from server.outside.pictures import Pictures
from server.postgres.analyze import keep_analyzing
from server.postgres.db import Database
from server.rpc.dispatch import Dispatcher
from server.tenants.keys import KeyCache
from server.tenants.limits import RateLimiter
from server.wires import files, online_office, publica, rpc, scim, workspace365
from server.wires.http import (
    DISPATCHER,
    INSTANCE_LIMITER,
    KEYS,
    LARGE_BODIES,
    LIMITER,
    SETTINGS,
    UNSENT,
    Wire,
    answer,
)
from server.wires.openapi import document

REST_WIRES = (files.WIRE, online_office.WIRE, workspace365.WIRE, publica.WIRE, scim.WIRE)
WIRES: tuple[Wire, ...] = (rpc.WIRE, *REST_WIRES)
DATABASE = web.AppKey("DATABASE", Database)
METRICS = web.AppKey("METRICS", Metrics)
_LAG_INTERVAL = 0.05


def build(
    settings: Settings,
    database_url: str,
    *,
    methods: Mapping[str, Method] = METHODS,
    check_results: bool = False,
) -> tuple[Database, KeyCache, PasswordHasher, Dispatcher]:
    """Make what the wires need, without connecting to the database; see create_app for the arguments."""
    database = Database(settings, database_url)
    keys = KeyCache(database, settings.key_cache_size)
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
    """Make the application with all wires.

    Args:
        database_url: a migrated database; it may be unavailable when the application starts.
        methods: the registry.
        check_results: validate every result with its model, as the tests do.
    """
    app = web.Application()
    app[SETTINGS] = settings
    app[LARGE_BODIES] = Shares(
        size=16, of_one=2, waiting=100, refusal="too many large bodies are being sent, try again"
    )
    app[LIMITER] = RateLimiter(settings.key_rate_limit, keys=settings.key_cache_size)
    app[INSTANCE_LIMITER] = RateLimiter(settings.instance_rate_limit, keys=settings.key_cache_size)
    app[publica.LIMITER] = RateLimiter(settings.rate_limit, keys=settings.key_cache_size)
    database, keys, hasher, dispatcher = build(
        settings, database_url, methods=methods, check_results=check_results
    )
    metrics = dispatcher.metrics
    app[UNSENT] = Unsent(settings.unsent_limit, metrics.unsent)
    app[DATABASE], app[KEYS], app[DISPATCHER], app[METRICS] = database, keys, dispatcher, metrics

    workers: list[asyncio.Task[None]] = []

    async def run_tasks(app: web.Application) -> AsyncIterator[None]:
        await database.open()
        tasks = [
            asyncio.create_task(keys.listen()),
            asyncio.create_task(_watch_lag(metrics)),
            asyncio.create_task(keep_analyzing(database)),
        ]
        if settings.run_jobs:
            services = Services(settings, database, metrics)
            workers.append(asyncio.create_task(work(services)))
            tasks.append(asyncio.create_task(keep_purging(database, settings)))
            tasks.append(asyncio.create_task(keep_delivering(settings, database, metrics)))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *workers, return_exceptions=True)
        hasher.close()
        dispatcher.pictures.close()
        await database.close()

    async def stop_workers(app: web.Application) -> None:
        for task in workers:  # running jobs have as much time to finish as running calls
            task.cancel()

    app.cleanup_ctx.append(run_tasks)
    app.on_shutdown.append(stop_workers)
    for wire in WIRES:
        wire.add_routes(app.router)
    app.router.add_get("/", _index)
    app.router.add_get("/openapi.json", _openapi)
    app.router.add_get("/livez", _alive)
    app.router.add_get("/readyz", _ready)
    app.router.add_get("/metrics", _metrics)
    return app


def create_waiting_app(settings: Settings) -> web.Application:
    """Make the application for the time when the database is being prepared: 200 at /livez, else 503."""
    app = web.Application()
    app[SETTINGS], app[METRICS] = settings, Metrics()
    app[UNSENT] = Unsent(settings.unsent_limit, app[METRICS].unsent)

    async def unavailable(request: web.Request) -> web.Response:
        raise Unavailable(retry_after=1)

    app.router.add_get("/livez", _alive)
    rpc.WIRE.add_routes(app.router, unavailable)
    app.router.add_route("*", "/{path:.*}", unavailable)
    return app


@lru_cache(maxsize=1)
def openapi(methods: tuple[Method, ...] = tuple(METHODS.values())) -> bytes:
    """The OpenAPI document of the REST wires, as JSON."""
    return orjson.dumps(document(methods, REST_WIRES))


async def _openapi(request: web.Request) -> web.Response:
    """The OpenAPI document. It needs no key."""
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
<p>README.md, server/methods/README.md and server/wires/README.md of the source say more; so does
<code>officerpc --help</code>.</p>
</html>
"""


async def _index(request: web.Request) -> web.Response:
    """Links to the documents: an HTML page if Accept names HTML, else JSON."""
    headers = {"Cache-Control": "public, max-age=300", "Vary": "Accept"}
    if "text/html" not in request.headers.get("Accept", "").lower():
        return answer(200, orjson.dumps(_INDEX, option=orjson.OPT_INDENT_2) + b"\n", headers)
    headers["Content-Security-Policy"] = "default-src 'none'; base-uri 'none'; frame-ancestors 'none'"
    headers["Referrer-Policy"] = "no-referrer"
    response = answer(200, _INDEX_PAGE, headers)
    response.content_type, response.charset = "text/html", "utf-8"
    return response


async def _alive(request: web.Request) -> web.Response:
    """200 while the event loop is running."""
    return answer(200, b'{"status":"alive"}')


async def _ready(request: web.Request) -> web.Response:
    """200 while writes succeed, else 503."""
    writable = False
    with contextlib.suppress(ServiceError, TimeoutError):
        async with asyncio.timeout(2):
            writable = await request.app[DATABASE].writable()
    if writable:
        return answer(200, b'{"status":"ready"}')
    return answer(503, b'{"status":"database not writable"}')


async def _metrics(request: web.Request) -> web.Response:
    """The metrics in the text format of Prometheus."""
    response = answer(200, request.app[DISPATCHER].metrics.exposition())
    response.content_type = "text/plain; version=0.0.4"
    return response


async def _watch_lag(metrics: Metrics) -> None:
    """Measure how late the event loop is at most in each minute."""
    loop, worst, until = asyncio.get_running_loop(), 0.0, 0.0
    while True:
        due = loop.time() + _LAG_INTERVAL
        await asyncio.sleep(_LAG_INTERVAL)
        now = loop.time()
        if now > until:
            worst, until = 0.0, now + 60
        if now - due > worst:
            worst = now - due
            metrics.lag(worst)
