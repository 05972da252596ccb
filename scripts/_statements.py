"""Records the statements that a call runs, for pgbench and psql.

They come from a dry run of the call, so they are what the server runs.
"""

import asyncio
import re
from typing import Any, NamedTuple

import asyncpg
from asyncpg.connection import LoggedQuery

from server.base.settings import Settings
from server.cli.session import Session
from server.postgres.queries import NamedQuery, load_queries
from server.tenants.call import RequestContext
from server.tenants.principals import OPERATOR


class Statement(NamedTuple):
    """A named query and the values of its parameters."""

    query: NamedQuery
    # By parameter, in Postgres's text form; None for null.
    values: dict[str, str | None]
    # The same as typed SQL literals.
    literals: dict[str, str]

    def sql(self, expressions: dict[str, str]) -> str:
        """The statement with expressions in place of its parameters, without the final semicolon."""
        names = self.query.params
        text = self.query.sql.rstrip().rstrip(";")
        return re.sub(r"\$(\d+)", lambda found: expressions[names[int(found[1]) - 1]], text)


def recorded(database: str, method: str, params: dict[str, Any]) -> list[Statement]:
    """The named queries of the transaction of one call, in order. The transaction is rolled back.

    Args:
        database: URL of a database that the server has migrated.
        method: one that writes.
        params: including the instance.
    """
    return asyncio.run(_record(database, method, params))


async def _record(url: str, method: str, params: dict[str, Any]) -> list[Statement]:
    named = {query.sql: query for query in load_queries().values()}
    ran: list[tuple[NamedQuery, tuple[Any, ...]]] = []

    def note(logged: LoggedQuery) -> None:
        if logged.query.startswith("BEGIN"):  # a running server has cached what was looked up before
            ran.clear()
        if logged.query in named and named[logged.query].params:
            ran.append((named[logged.query], tuple(logged.args)))

    async with Session(Settings(), url) as session:
        async with session.database.connection() as connection:
            connection.raw.add_query_logger(note)  # the pool gives the call the same connection
        context = RequestContext("0" * 32, address="127.0.0.1", origin="bench", dry_run=True)
        await session.dispatcher.call(OPERATOR, method, params, context)
        async with session.database.connection() as connection:
            connection.raw.remove_query_logger(note)
            return [await _in_text(connection.raw, query, args) for query, args in ran]


async def _in_text(connection: asyncpg.Connection, query: NamedQuery, args: tuple[Any, ...]) -> Statement:
    """The values as text, converted by Postgres with the types that it inferred."""
    prepared = await connection.prepare(query.sql)
    values: dict[str, str | None] = {}
    literals: dict[str, str] = {}
    for name, kind, value in zip(query.params, prepared.get_parameters(), args, strict=True):
        text, quoted = await connection.fetchrow(
            f"SELECT given::text, quote_nullable(given::text) FROM (SELECT $1::{kind.name} AS given) AS one",
            value,
        )
        values[name], literals[name] = text, f"{quoted}::{kind.name}"
    return Statement(query, values, literals)
