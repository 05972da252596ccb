"""Rules for the SQL, checked in the catalogue and by parsing every named query."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pglast
import pytest
from conftest import until
from pglast import ast
from pglast.visitors import Visitor
from structlog.testing import capture_logs

from server.base.errors import CONSTRAINTS
from server.postgres import citus
from server.postgres.migrations import Migration, load_migrations, migrate, parse_migration, pending
from server.postgres.queries import load_queries

QUERIES = load_queries()
QUEUE_TABLES = {"pgqueuer", "pgqueuer_log", "pgqueuer_schedules", "pgqueuer_statistics"}
GLOBAL_TABLES = {
    "event_clock",
    "heartbeats",
    "instances",
    "api_keys",
    "api_key_instances",
    "schema_migrations",
} | QUEUE_TABLES
SERVER = Path(__file__).parent.parent / "server"
UPKEEP = set(
    re.findall(r"^-- name: (\w+)", (SERVER.parent / "sql/queries/upkeep.sql").read_text(), re.MULTILINE)
)


@pytest.fixture
async def catalogue(template_url: str) -> AsyncIterator[asyncpg.Connection]:
    """The schema in the database that the others are clones of: for tests that only read it."""
    connection = await asyncpg.connect(template_url)
    yield connection
    await connection.close()


async def tenant_tables(db: asyncpg.Connection) -> set[str]:
    rows = await db.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows} - GLOBAL_TABLES


async def test_distribute_knows_every_table_function_and_trigger(catalogue: asyncpg.Connection) -> None:
    """New ones go into the lists of server/postgres/citus.py."""
    tables = await catalogue.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    known = [*citus.TENANT_TABLES, *citus.REFERENCE_TABLES, *citus.LOCAL_TABLES]
    assert sorted(row[0] for row in tables) == sorted(known)
    functions = await catalogue.fetch(
        "SELECT oid::regprocedure::text FROM pg_proc AS p WHERE pronamespace = 'public'::regnamespace"
        " AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')"
    )
    assert sorted(row[0] for row in functions) == sorted([*citus.NODE_FUNCTIONS, *citus.LOCAL_FUNCTIONS])
    triggers = await catalogue.fetch("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")
    assert sorted(row[0] for row in triggers) == sorted(citus.TRIGGERS)


async def test_keys_and_references_lead_with_the_instance(db: asyncpg.Connection) -> None:
    rows = await db.fetch(
        """
        SELECT c.conrelid::regclass::text AS table_name, c.conname, c.contype::text AS kind,
            array_agg(a.attname::text ORDER BY k.place) AS columns
        FROM pg_constraint AS c
        CROSS JOIN LATERAL unnest(c.conkey) WITH ORDINALITY AS k (attnum, place)
        JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = k.attnum
        WHERE c.contype IN ('p', 'u', 'f') AND c.connamespace = 'public'::regnamespace
        GROUP BY 1, 2, 3
        """
    )
    tenant = await tenant_tables(db)
    assert tenant >= {"users", "credentials", "mailboxes", "calendars", "file_folders", "sessions"}
    seen = set()
    for row in rows:
        assert len(row["conname"]) <= 50, row["conname"]
        if row["table_name"] in tenant:
            seen.add(row["table_name"])
            assert row["columns"][0] == "instance_id", row["conname"]
    assert seen == tenant


async def test_tenant_tables_have_no_triggers_and_no_sequences(db: asyncpg.Connection) -> None:
    for table in await tenant_tables(db):
        triggers = await db.fetchval(
            "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::text::regclass AND NOT tgisinternal", table
        )
        identities = await db.fetchval(
            "SELECT count(*) FROM pg_attribute WHERE attrelid = $1::text::regclass AND attidentity <> ''",
            table,
        )
        # But those that keep anybody from altering what happened.
        assert (triggers, identities) == (2 if table == "events" else 0, 0), table


@pytest.mark.parametrize("name", sorted(QUERIES))
async def test_queries_on_tenant_tables_name_the_instance(name: str, catalogue: asyncpg.Connection) -> None:
    """Each SELECT, UPDATE or DELETE part that reads a tenant table equates its instance_id.

    Statements of sql/queries/upkeep.sql are the operator's and the background's, and may read across.
    """
    if name in UPKEEP:
        return
    tenant = await tenant_tables(catalogue)
    tree = pglast.parse_sql(QUERIES[name].sql)
    assert len(tree) == 1
    for part in _parts(tree[0].stmt):
        tables = [table for table in _own_tables(part) if table.relname in tenant]
        if not tables:
            continue
        if isinstance(part, ast.InsertStmt):
            assert part.cols[0].name == "instance_id", f"{name} inserts without instance_id"
            continue
        conditions = _equated(part)
        for table in tables:
            alias = table.alias.aliasname if table.alias else table.relname
            assert alias in conditions or (len(tables) == 1 and None in conditions), f"{name}: {alias}"


def _parts(statement: Any) -> list[Any]:
    """Every SELECT, INSERT, UPDATE and DELETE in a statement, nested ones too."""
    found: list[Any] = []

    class Parts(Visitor):
        def visit(self, ancestors: Any, node: Any) -> None:
            if isinstance(node, (ast.SelectStmt, ast.InsertStmt, ast.UpdateStmt, ast.DeleteStmt)):
                found.append(node)

    Parts()(statement)
    return found


def _own_tables(part: Any) -> list[Any]:
    """The tables a part names itself, not those of its subqueries."""
    tables = [part.relation] if getattr(part, "relation", None) is not None else []

    def walk(item: Any) -> None:
        if isinstance(item, ast.RangeVar):
            tables.append(item)
        elif isinstance(item, ast.JoinExpr):
            walk(item.larg)
            walk(item.rarg)

    for clause in ("fromClause", "usingClause"):
        for item in getattr(part, clause, None) or ():
            walk(item)
    return tables


def _equated(part: Any) -> set[str | None]:
    """The aliases whose instance_id a part equates with something (None: without an alias)."""
    aliases: set[str | None] = set()

    def walk(node: Any) -> None:
        if isinstance(node, ast.BoolExpr) and node.boolop.name == "AND_EXPR":
            for argument in node.args:
                walk(argument)
        elif isinstance(node, ast.A_Expr) and node.name[0].sval == "=":
            for side in (node.lexpr, node.rexpr):
                if isinstance(side, ast.ColumnRef) and side.fields[-1].sval == "instance_id":
                    aliases.add(side.fields[0].sval if len(side.fields) > 1 else None)
        elif isinstance(node, ast.JoinExpr):
            walk(node.quals)
            walk(node.larg)
            walk(node.rarg)

    walk(getattr(part, "whereClause", None))
    for item in getattr(part, "fromClause", None) or ():
        walk(item)
    return aliases


@pytest.mark.parametrize("name", sorted(QUERIES))
async def test_queries_are_accepted_by_the_database(name: str, catalogue: asyncpg.Connection) -> None:
    """Each can be prepared on the schema, so that no column or type is misspelt."""
    assert await catalogue.prepare(QUERIES[name].sql)


def test_every_view_is_read() -> None:
    everything = "\n".join(query.sql for query in QUERIES.values())
    for path in (SERVER.parent / "sql/views").glob("*.sql"):
        assert f"{path.stem} AS NOT MATERIALIZED" in everything, f"{path.stem} is not read"


@pytest.mark.parametrize(
    ("name", "values", "read"),
    [
        ("get_user", {"instance_name": "X", "email_key": "x"},
         {"users", "group_members", "groups", "mailboxes", "calendars", "file_folders"}),
        ("get_member", {"user_id": None, "key": "x", "external_id": None},
         {"users", "logins", "accounts", "profile_fields"}),
        ("list_users", {"status": "all", "after": "", "starts_with": "", "row_limit": 1}, {"users"}),
        ("read_store_users", {"ids": [1]}, {"users", "user_plans", "plans"}),
        ("get_scim_group", {"group_id": 1, "with_members": False}, {"groups"}),
        ("get_scim_group", {"group_id": 1, "with_members": True}, {"groups", "group_members", "users"}),
    ],
)  # fmt: skip
async def test_what_a_statement_does_not_show_of_a_user_is_not_read(
    name: str, values: dict[str, Any], read: set[str], db: asyncpg.Connection
) -> None:
    """The planner drops the parts of the view shown_users whose columns a statement does not take."""
    query = QUERIES[name]
    statement = await db.prepare(query.sql)
    plan = await statement.explain(*((values | {"instance_id": 1})[param] for param in query.params))
    assert set(re.findall(r"'Relation Name': '(\w+)'", str(plan))) == read


def test_no_volatile_functions_in_updates() -> None:
    """A sharded cluster refuses them; now() and parameters do."""
    for name, query in QUERIES.items():
        assert not re.search(r"clock_timestamp|gen_random_uuid|random\(", query.sql), name


def test_every_query_is_used_and_every_used_query_exists() -> None:
    text = "\n".join(path.read_text() for path in SERVER.rglob("*.py"))
    for name in QUERIES:
        assert f'"{name}"' in text, f"{name} is not used"
    for name in re.findall(r"\.(?:one|all|value|run|look_up)\(\s*\"(\w+)\"", text):
        assert name in QUERIES, f"{name} is no named query"


async def test_every_mapped_constraint_exists(db: asyncpg.Connection) -> None:
    rows = await db.fetch(
        "SELECT conname FROM pg_constraint UNION"
        " SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indisunique"
    )
    assert set(CONSTRAINTS) <= {row["conname"] for row in rows}


async def test_migrations_run_once_and_notice_changes(db: asyncpg.Connection) -> None:
    migrations = load_migrations()
    assert [migration.version for migration in migrations] == list(range(1, len(migrations) + 1))
    assert await migrate(db, migrations) == []
    changed = [migrations[0]._replace(checksum="0" * 64), *migrations[1:]]
    with pytest.raises(Exception, match="from another file"):
        await migrate(db, changed)
    await db.execute("INSERT INTO schema_migrations VALUES (9999, 'future', 'x')")
    with pytest.raises(Exception, match="does not know"):
        await migrate(db, migrations)


async def test_programs_run_on_a_later_schema_that_is_compatible(db: asyncpg.Connection) -> None:
    """Those that know the migrations up to `compatible since`, so that servers can be replaced one after the other."""
    known = load_migrations()
    last = len(known)
    later = parse_migration(
        f"{last + 1:04}_note", f"-- compatible since {last:04}\nALTER TABLE groups ADD COLUMN note text;\n"
    )
    await migrate(db, [*known, later])
    assert await migrate(db, known) == [] and await pending(db, known) == []
    with pytest.raises(Exception, match=f"migration {last + 1}, which this program does not know"):
        await migrate(db, known[:-1])
    contract = parse_migration(f"{last + 2:04}_no_note", "ALTER TABLE groups DROP COLUMN note;\n")
    await migrate(db, [*known, later, contract])
    with pytest.raises(Exception, match=f"migration {last + 2}, which this program does not know"):
        await migrate(db, known)


async def test_a_migration_behind_a_dump_lets_writes_through(
    db: asyncpg.Connection, database_url: str
) -> None:
    """It waits for the table for two seconds at a time, says so, and is applied once the dump is through."""
    last = load_migrations()[-1]
    statements = ("ALTER TABLE users ADD COLUMN note text",)
    another = Migration(last.version + 1, "another", "0" * 64, statements)
    dump, writer = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    dumping = dump.transaction()
    await dumping.start()
    await dump.execute("LOCK TABLE users IN ACCESS SHARE MODE")
    with capture_logs() as logged:
        migrating = asyncio.create_task(migrate(db, [*load_migrations(), another]))
        await until(
            lambda: writer.fetchval(
                "SELECT true FROM pg_locks WHERE NOT granted AND pid = $1", db.get_server_pid()
            )
        )
        async with asyncio.timeout(60):  # so that the test ends where the write waits for the dump
            await writer.execute("UPDATE users SET display_name = 'x'")
        await until(lambda: asyncio.sleep(0, logged))
        await dumping.rollback()
        assert await migrating == ["another"]
    assert {(line["event"], line["migration"]) for line in logged} == {
        ("migration_waits_for_lock", "another")
    }
    assert await db.fetchval("SELECT count(*) FROM users WHERE note IS NULL AND display_name = 'x'") == 1
    await dump.close()
    await writer.close()


BEFORE_THEIR_MARKS = {
    22: "3682e0386a16e447d02f2d93f53557c52eade3759382807688a4467731ad163f",
    26: "377a1dc712b5eaa2a55c2736ebcf43db03ada803cc50953f446239818c27fb8c",
    27: "5cd5508392c884f9ed69c288744797a124078397a555bc67ee5d9a568e7c3d0d",
}
"""Checksums of migrations as databases have them from the time when their indexes were built in the transaction."""


def test_marks_do_not_change_the_checksum() -> None:
    migrations = {one.version: one for one in load_migrations()}
    assert {version: migrations[version].checksum for version in BEFORE_THEIR_MARKS} == BEFORE_THEIR_MARKS
    indexed = [one for one in migrations.values() if "INDEX CONCURRENTLY" in " ".join(one.statements)]
    assert {one.version for one in indexed} == set(BEFORE_THEIR_MARKS)
    marked = parse_migration(
        "0099_x", "-- Why.\n-- concurrently\nCREATE UNIQUE INDEX a ON b (c);\n\nSELECT 1;\n"
    )
    assert marked.statements == (
        "-- Why.\nCREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS a ON b (c)", "SELECT 1;",
    )  # fmt: skip


NOTES = (
    "ALTER TABLE groups ADD COLUMN note text",
    "CREATE INDEX CONCURRENTLY IF NOT EXISTS users_note ON users (display_name)",
    "ALTER TABLE groups ADD COLUMN noted_at timestamptz",
)


@pytest.fixture
def notes() -> list[Migration]:
    """All migrations, and then one of three steps."""
    return [*load_migrations(), Migration(len(load_migrations()) + 1, "notes", "0" * 64, NOTES)]


class Building(NamedTuple):
    """A migration that waits for a writer before it builds its index."""

    writer: asyncpg.Connection
    another: asyncpg.Connection
    migrating: "asyncio.Task[list[str]]"
    # Ends the transaction of the writer.
    end: Callable[[], Awaitable[Any]]


@pytest.fixture
async def building(
    db: asyncpg.Connection, database_url: str, notes: list[Migration]
) -> AsyncIterator[Building]:
    """On db, whose table of migrations is as an earlier version made it."""
    await db.execute("ALTER TABLE schema_migrations DROP COLUMN statements_done")
    writer, another = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    writing = writer.transaction()
    await writing.start()
    await writer.execute("UPDATE users SET display_name = 'x'")
    migrating = asyncio.create_task(migrate(db, notes))
    phase = "SELECT phase LIKE 'waiting for writers%' FROM pg_stat_progress_create_index WHERE pid = $1"
    await until(lambda: another.fetchval(phase, db.get_server_pid()))
    yield Building(writer, another, migrating, writing.rollback)
    migrating.cancel()
    await asyncio.gather(migrating, return_exceptions=True)
    await writer.close()
    await another.close()


async def state(db: asyncpg.Connection) -> tuple[bool, int | None]:
    """Whether the index is valid, and how many statements of the migration have run (None: all)."""
    valid = await db.fetchval("SELECT indisvalid FROM pg_index WHERE indexrelid = 'users_note'::regclass")
    return valid, await db.fetchval("SELECT statements_done FROM schema_migrations WHERE name = 'notes'")


@pytest.mark.damages
async def test_writes_do_not_wait_for_a_concurrent_index(
    building: Building, notes: list[Migration], db: asyncpg.Connection
) -> None:
    await building.another.execute("SET lock_timeout = '1s'")
    await building.another.execute(
        "INSERT INTO users (instance_id, id, email, email_key, display_name, profile, app_values, settings, apps)"
        " VALUES (1, 99, 'x@example.com', 'x@example.com', '', '{}', '{}', '{}', '{}')"
    )
    assert not building.migrating.done()
    await building.end()
    assert await building.migrating == ["notes"]
    assert await state(db) == (True, None)
    assert await migrate(db, notes) == []


async def test_an_interrupted_concurrent_index_is_built_again(
    building: Building, notes: list[Migration], db: asyncpg.Connection
) -> None:
    building.migrating.cancel()
    await asyncio.gather(building.migrating, return_exceptions=True)
    assert await state(building.another) == (False, 1)
    assert await pending(db, notes) == notes[-1:]
    await building.end()
    assert await migrate(db, notes) == ["notes"]
    assert await state(db) == (True, None)
    assert await migrate(db, notes) == []


async def test_a_server_of_an_older_version_starts_during_a_concurrent_index(
    building: Building, notes: list[Migration], db: asyncpg.Connection
) -> None:
    """Its statement waits for the lock of migrations, and the index for its snapshot."""
    with capture_logs() as logged:
        starting = asyncio.create_task(building.another.execute("SELECT pg_advisory_lock($1)", 0x0FF1CE))
        await until(
            lambda: building.writer.fetchval(
                "SELECT true FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
        )
        await building.end()
        # Postgres ends one of the two.
        (ended,) = await asyncio.gather(starting, return_exceptions=True)
        if not isinstance(ended, asyncpg.DeadlockDetectedError):
            assert await state(building.writer) == (False, 1)
            await building.another.execute("SELECT pg_advisory_unlock($1)", 0x0FF1CE)
        assert await building.migrating == ["notes"]
    waited = "migration_waits_for_lock" in [line["event"] for line in logged]
    assert waited == (not isinstance(ended, asyncpg.DeadlockDetectedError))
    assert await state(db) == (True, None)


def test_migrations_are_split_into_single_statements() -> None:
    for migration in load_migrations():
        for statement in migration.statements:
            assert len(pglast.parse_sql(statement)) == 1, statement[:80]
