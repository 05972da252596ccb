"""The benchmark: rows are independent, and pgbench and psql run the statements of a call."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench
from _figures import Figure
from _statements import recorded

HASH = "$argon2id$v=19$m=19456,t=2,p=1$" + "A" * 22 + "$" + "A" * 43
NOBODY = cast(Any, SimpleNamespace())


def good(_: Any) -> Iterator[Figure]:
    yield Figure("good", "a figure", [1.0], 2.0)


def bad(_: Any) -> Iterator[Figure]:
    yield Figure("partly", "what came before the failure", [1.0])
    raise ValueError("broken")


def test_a_row_that_fails_takes_nothing_from_the_others() -> None:
    figures, failed = bench.measure([bad, good], NOBODY, targets=True)
    assert [figure.name for figure in figures] == ["partly", "good"]
    assert failed == {"bad": "ValueError: broken"}
    assert [figure.met for figure in figures] == [None, False]


def test_a_smoke_run_has_no_targets() -> None:
    figures, _ = bench.measure([good], NOBODY, targets=False)
    assert [figure.met for figure in figures] == [None]


@pytest.mark.parametrize(
    ("method", "params", "names"),
    [
        ("createUser", {"email": "a@example.com", "passwordHash": HASH}, ["create_users"]),
        (
            "createUsers",
            {"users": [{"email": "a@example.com"}, {"email": "b@example.com", "externalId": "it's"}]},
            ["hold_counters", "find_taken", "create_users", "insert_events"],
        ),
    ],
)
async def test_statements_are_those_of_the_call(
    method: str, params: dict[str, Any], names: list[str], db: asyncpg.Connection, database_url: str
) -> None:
    """Every parameter has the value that the server binds, so a new one cannot be forgotten."""
    statements = await asyncio.to_thread(recorded, database_url, method, params | {"instance": "MYINSTANCE"})
    assert [statement.query.name for statement in statements] == names
    for statement in statements:
        assert set(statement.values) == set(statement.query.params)
    users = "SELECT count(*) FROM users WHERE email LIKE '%@example.com' AND NOT is_admin"
    assert await db.fetchval(users) == 0
    for statement in statements:
        await db.execute(statement.sql(statement.literals))
    assert await db.fetchval(users) == len(params.get("users", [params]))
