"""The bare handler of bench.py: aiohttp and one query, without the rest of the server."""

import os
import random
from typing import Any

import asyncpg
import orjson
from aiohttp import web

from server.postgres.queries import load_queries


class _Connection(asyncpg.Connection):  # type: ignore[misc]
    """No reset query, as in the server; it would cost a round trip a call."""

    def get_reset_query(self) -> str:
        return ""


async def _set_codecs(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb", schema="pg_catalog", encoder=orjson.dumps, decoder=lambda data: orjson.loads(data[1:]),
        format="binary",
    )  # fmt: skip


async def app() -> web.Application:
    """The application for gunicorn. The environment variables BARE_* configure it."""
    url, size, users = (os.environ[f"BARE_{name}"] for name in ("DATABASE_URL", "POOL_SIZE", "USERS"))
    queries, last = load_queries(), int(users)
    query = queries["get_user"]
    by_id, by_name = queries["get_scim_user"], queries["find_scim_users"]
    pool = asyncpg.create_pool(
        url, min_size=0, max_size=int(size), connection_class=_Connection, init=_set_codecs
    )
    await pool
    instance = await pool.fetchrow("SELECT id, name FROM instances ORDER BY id LIMIT 1")
    given = {"instance_id": instance["id"], "instance_name": instance["name"]}

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        given["email_key"] = f"user{random.randint(1, last)}@example.com"
        arguments = [given[name] for name in query.params]
        async with pool.acquire() as connection:
            row = await connection.fetchrow(query.sql, *arguments)
        return web.Response(body=orjson.dumps(dict(row)), content_type="application/json")

    async def handle_id(request: web.Request) -> web.Response:
        given["user_id"] = random.randint(2, last + 1)
        arguments = [given[name] for name in by_id.params]
        async with pool.acquire() as connection:
            row = await connection.fetchrow(by_id.sql, *arguments)
        return web.Response(body=orjson.dumps(dict(row)), content_type="application/json")

    async def handle_name(request: web.Request) -> web.Response:
        given["key"], given["external_id"] = f"user{random.randint(1, last)}@example.com", None
        arguments = [given[name] for name in by_name.params]
        async with pool.acquire() as connection:
            rows = await connection.fetch(by_name.sql, *arguments)
        return web.Response(body=orjson.dumps([dict(row) for row in rows]), content_type="application/json")

    application = web.Application()
    application.router.add_get("/scim/v2/Users", handle_name)
    application.router.add_get("/scim/v2/Users/{id}", handle_id)
    application.router.add_post("/rpc", handle)
    return application
