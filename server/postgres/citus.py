"""Where each table and function belongs on Citus."""

from typing import Literal, NamedTuple, TypeAlias

import asyncpg

Kind: TypeAlias = Literal["reference", "tenant", "local"]

TENANT_TABLES = (
    "users", "instance_counters", "credentials", "mailboxes", "calendars", "file_folders", "sessions",
    "accounts", "positions", "codes", "documents", "profile_fields", "pictures", "plans", "user_plans",
    "office365_accounts", "events", "idempotency_keys", "webhooks", "deliveries", "login_failures",
    "groups", "group_members", "logins",
)  # fmt: skip
"""Distributed by instance_id: all rows of an instance are on one node. The others are beside the first."""
REFERENCE_TABLES = ("instances", "api_keys", "api_key_instances")
"""Small and rarely written: copied to every node."""
LOCAL_TABLES = (
    "event_clock", "heartbeats", "jobs", "schema_migrations",
    "pgqueuer", "pgqueuer_log", "pgqueuer_schedules", "pgqueuer_statistics",
)  # fmt: skip
"""On the coordinator only."""
LEDGER = "distribution_foreign_keys"
"""The foreign keys that `officerpc distribute` has taken off; it exists only until it has finished."""

NODE_FUNCTIONS = ("bigrams_of(text)", "plan_state(date,date,timestamp with time zone)")
"""Functions that statements call on the nodes. Citus itself copies those of indexes and triggers."""
LOCAL_FUNCTIONS = (
    "adopt_old_jobs()", "analyze_table(regclass)", "bigrams(text)", "event_horizon()", "event_xid()",
    "fn_pgqueuer_changed()", "purge_old_events(integer)", "refuse_to_alter_events()", "user_state(users)",
)  # fmt: skip
TRIGGERS = ("events_stay", "events_are_not_emptied", "tg_pgqueuer_changed")
"""They only compare the row with the clock, or are of a local table: safe, which Citus cannot know."""

SAFE_SETTINGS = (
    # Safe for the triggers above.
    "SET LOCAL citus.enable_unsafe_triggers = on",
    # Foreign keys to reference tables need all shards of a node on one connection.
    "SET LOCAL citus.multi_shard_modify_mode = 'sequential'",
    # Otherwise Citus reports every step that it takes.
    "SET LOCAL client_min_messages = warning",
)
"""For transactions that change the schema."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(LOCAL_TABLES, "local"),
    **dict.fromkeys(REFERENCE_TABLES, "reference"),
    **dict.fromkeys(TENANT_TABLES, "tenant"),
}


class Table(NamedTuple):
    """A table of the database, and where it belongs: None if this program does not know it."""

    name: str
    kind: Kind | None
    is_placed: bool


async def has_extension(connection: "asyncpg.Connection") -> bool:
    """Whether the database has the extension citus."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
    )
    return found


async def is_distributed(connection: "asyncpg.Connection") -> bool:
    """Whether the tables of tenants are distributed, all or some of them."""
    if not await has_extension(connection):
        return False
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = any("
        " SELECT to_regclass(name) FROM unnest($1::text[]) AS one (name)))",
        list(TENANT_TABLES),
    )
    return found


async def is_half_distributed(connection: "asyncpg.Connection") -> bool:
    """Whether `officerpc distribute` was interrupted."""
    found: bool = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", LEDGER)
    return found


async def list_tables(connection: "asyncpg.Connection") -> list[Table]:
    """Every table of the schema, in the order in which they are distributed, those that are unknown last.

    Args:
        connection: to a database with the extension.
    """
    rows = await connection.fetch(
        "SELECT c.relname::text AS name,"
        " EXISTS (SELECT FROM pg_dist_partition AS p WHERE p.logicalrelid = c.oid) AS is_placed"
        " FROM pg_class AS c"
        " WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p', 'f', 'm')"
        " AND c.relname <> $1"
        " AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')",
        LEDGER,
    )
    order = [*REFERENCE_TABLES, *TENANT_TABLES, *LOCAL_TABLES]
    place = {name: number for number, name in enumerate(order)}
    tables = [Table(row["name"], _KINDS.get(row["name"]), row["is_placed"]) for row in rows]
    return sorted(tables, key=lambda table: (place.get(table.name, len(order)), table.name))


async def place_table(connection: "asyncpg.Connection", table: Table) -> None:
    """Copy a reference table to every node, or distribute a table of tenants with its rows.

    Args:
        connection: to the coordinator, in a transaction with SAFE_SETTINGS. No foreign key connects the table
            with one that is placed elsewhere.
    """
    if table.kind == "reference":
        await connection.execute("SELECT create_reference_table($1::text::regclass)", table.name)
    else:
        first = TENANT_TABLES[0]
        await connection.execute(
            "SELECT create_distributed_table($1::text::regclass, 'instance_id', colocate_with => $2)",
            table.name,
            "none" if table.name == first else first,
        )


async def missing_functions(connection: "asyncpg.Connection") -> list[str]:
    """Those of NODE_FUNCTIONS that exist and are not on every node yet."""
    rows = await connection.fetch(
        "SELECT name FROM unnest($1::text[]) WITH ORDINALITY AS one (name, number)"
        " WHERE to_regprocedure(name) IS NOT NULL AND NOT EXISTS ("
        " SELECT FROM pg_dist_object AS o"
        " WHERE o.classid = 'pg_proc'::regclass AND o.objid = to_regprocedure(name))"
        " ORDER BY number",
        list(NODE_FUNCTIONS),
    )
    return [row["name"] for row in rows]


async def place_function(connection: "asyncpg.Connection", name: str) -> None:
    """Copy a function to every node.

    Args:
        name: with the types of its parameters.
    """
    await connection.execute("SELECT create_distributed_function($1::text::regprocedure)", name)


async def place_new(connection: "asyncpg.Connection") -> None:
    """Place the tables and functions that a statement of a migration has just created.

    A migration therefore adds foreign keys from a new table to tables of tenants by statements of their own:
    Citus refuses them in CREATE TABLE, as the new table is still local then.

    Args:
        connection: to a distributed database, in the transaction of the migration.
    """
    for table in await list_tables(connection):
        if table.kind in ("reference", "tenant") and not table.is_placed:
            await place_table(connection, table)
    for function in await missing_functions(connection):
        await place_function(connection, function)
