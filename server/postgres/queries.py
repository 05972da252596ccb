"""The named statements of sql/queries, with views of sql/views and columns of sql/columns inserted."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import aiosql
from aiosql.adapters.asyncpg import AsyncPGAdapter


class NamedQuery(NamedTuple):
    """A statement of sql/queries, and the order of its parameters."""

    name: str
    sql: str
    params: tuple[str, ...]


def sql_dir() -> Path:
    """The folder of the SQL files: in an installed package inside it, in a checkout beside it."""
    server = Path(__file__).parent.parent
    packaged = server / "sql"
    return packaged if packaged.is_dir() else server.parent / "sql"


@functools.cache
def load_queries(*, citus: bool = False) -> dict[str, NamedQuery]:
    """Every named query of sql/queries/*.sql.

    Args:
        citus: use the variants in sql/citus/*.sql, which have the same parameters.
    """
    queries = _load("queries")
    return queries | _load("citus") if citus else queries


@functools.cache
def load_columns() -> dict[str, dict[str, str]]:
    """The lists of sql/columns, by file name: each column and its type."""
    return {
        path.stem: dict(
            line.split(" ", 1)
            for line in path.read_text(encoding="utf-8").splitlines()
            if not line.startswith("#")
        )
        for path in (sql_dir() / "columns").glob("*.txt")
    }


def _load(folder: str) -> dict[str, NamedQuery]:
    adapter = AsyncPGAdapter()  # type: ignore[no-untyped-call]
    views = _load_views()
    queries: dict[str, NamedQuery] = {}
    for path in sorted((sql_dir() / folder).glob("*.sql")):
        statements = re.split(r"^(?=-- name:)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        text = "".join(_with_columns(_with_views(statement, views)) for statement in statements)
        loaded = aiosql.from_str(text, lambda: adapter)
        for name in loaded.available_queries:
            if name.endswith("_cursor"):  # aiosql adds one to every select
                continue
            if name in queries:
                raise ValueError(f"two queries are called {name}")
            sql = getattr(loaded, name).sql
            queries[name] = NamedQuery(name, sql, tuple(adapter.var_sorted[name]))
    return queries


def _load_views() -> dict[str, str]:
    """The text of each sql/views/*.sql without comments, by file name."""
    views = {}
    for path in (sql_dir() / "views").glob("*.sql"):
        lines = path.read_text(encoding="utf-8").splitlines()
        views[path.stem] = "\n".join(line for line in lines if not line.startswith("--")).rstrip(";\n")
    return views


def _with_views(statement: str, views: dict[str, str]) -> str:
    """A statement with the views that it reads as common table expressions.

    Views of the database cannot have parameters: Citus would send the statement to all shards. Here each
    subquery names the instance by a parameter, so one shard is enough. Postgres inlines both.
    """
    if not (named := _named(statement, views)):
        return statement
    expressions = ",\n".join(f"{name} AS NOT MATERIALIZED (\n{views[name]}\n)" for name in named)
    comments = re.match(r"(--.*\n)*", statement)
    assert comments
    sql = statement[comments.end() :]
    rest = f",\n{sql.removeprefix('WITH ')}" if sql.startswith("WITH ") else f"\n{sql}"
    return f"{comments[0]}WITH {expressions}{rest}"


def _with_columns(statement: str) -> str:
    """A statement with the columns of a list (a file of sql/columns) in place of its name.

    `u.LIST` becomes `u.a, u.b`; `LIST text`, in a record, the columns with their types; `LIST = given.LIST`,
    in an UPDATE, an assignment of each.
    """
    for name, columns in load_columns().items():

        def listed(match: re.Match[str], columns: dict[str, str] = columns) -> str:
            target, table, typed = match["target"], match["table"] or "", match["typed"]
            return ", ".join(
                f"{f'{column} = ' if target else ''}{table}{column}{f' {type_}' if typed else ''}"
                for column, type_ in columns.items()
            )

        pattern = rf"(?P<target>\b{name} = )?(?P<table>\b\w+\.)?\b{name}\b(?P<typed> text\b)?"
        statement = re.sub(pattern, listed, statement)
    return statement


def _named(sql: str, views: dict[str, str]) -> dict[str, None]:
    """The views that a text reads, in the order of their first use, each after those that it reads."""
    named: dict[str, None] = {}
    for name in re.findall(r"\b(?:FROM|JOIN)\s+(\w+)", sql):
        if name in views:
            named |= _named(views[name], views) | {name: None}
    return named
