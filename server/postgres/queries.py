"""The named statements of sql/queries, with the views of sql/views and the columns of sql/columns in them."""

import functools
import re
from pathlib import Path
from typing import NamedTuple

import aiosql
from aiosql.adapters.asyncpg import AsyncPGAdapter


class NamedQuery(NamedTuple):
    """One statement of sql/queries with the order in which its parameters go."""

    name: str
    sql: str
    params: tuple[str, ...]


def sql_dir() -> Path:
    """The SQL files: inside the package where it is installed, beside it in a checkout."""
    server = Path(__file__).parent.parent
    packaged = server / "sql"
    return packaged if packaged.is_dir() else server.parent / "sql"


@functools.cache
def load_queries(*, citus: bool = False) -> dict[str, NamedQuery]:
    """Every named query of sql/queries/*.sql.

    Args:
        citus: in the form that sql/citus/*.sql has instead, where there is one. Its parameters are the same.
    """
    queries = _load("queries")
    return queries | _load("citus") if citus else queries


@functools.cache
def load_columns() -> dict[str, dict[str, str]]:
    """The lists of sql/columns by the name of their file: each column and its type."""
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
    """The text of each sql/views/*.sql, without comments, by the name of its file."""
    views = {}
    for path in (sql_dir() / "views").glob("*.sql"):
        lines = path.read_text(encoding="utf-8").splitlines()
        views[path.stem] = "\n".join(line for line in lines if not line.startswith("--")).rstrip(";\n")
    return views


def _with_views(statement: str, views: dict[str, str]) -> str:
    """A statement with the views that it reads as common table expressions before it.

    They are not views of the database: each subquery in them names the instance by a parameter, so that Citus
    sends the statement to one shard. A view can only equate columns, and goes to all of them.
    Postgres inlines both.
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
    """A statement with the columns of a list (a file of sql/columns) in place of the name of the list.

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
    """The views that a text reads, in the order of first use; those that these read stand before them."""
    named: dict[str, None] = {}
    for name in re.findall(r"\b(?:FROM|JOIN)\s+(\w+)", sql):
        if name in views:
            named |= _named(views[name], views) | {name: None}
    return named
