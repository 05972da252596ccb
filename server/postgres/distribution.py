"""`officerpc distribute`: distributes a migrated database over the nodes of a Citus cluster."""

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import asyncpg

from server.postgres import citus
from server.postgres.migrations import Migration, MigrationError, migration_lock, pending

Action: TypeAlias = Literal[
    "drop foreign key", "copy to every node", "distribute by instance_id", "copy function", "add foreign key",
    "analyze",
]  # fmt: skip


class DistributionError(Exception):
    """The database or the cluster is not ready; the message says what to do."""


class Step(NamedTuple):
    """What is done in one transaction, except that all foreign keys are dropped in the first one."""

    action: Action
    name: str
    rows: int | None = None
    """Of a table."""


class Plan(NamedTuple):
    """What is to be done; no steps if the database is distributed completely."""

    nodes: list[str]
    """The nodes that get the rows of tenants."""
    steps: list[Step]
    is_resumed: bool
    """Whether an earlier run was interrupted."""


class _ForeignKey(NamedTuple):
    table: str
    name: str
    definition: str

    @property
    def label(self) -> str:
        return f"{self.name} of {self.table}"


class Progress(NamedTuple):
    """How far a step is."""

    step: Step
    copied: int
    """Rows, in millions until the step is done."""
    is_done: bool


Watch: TypeAlias = Callable[[Progress], None]


async def plan(connection: "asyncpg.Connection", migrations: list[Migration]) -> Plan:
    """What distribute would do. Reads only.

    Args:
        connection: to the coordinator, direct, as the owner of the tables.
        migrations: all, as from load_migrations.

    Raises:
        DistributionError: as distribute does.
    """
    nodes = await _ready_nodes(connection)
    is_resumed = await citus.is_half_distributed(connection)
    if not is_resumed:  # an interrupted run is first finished with the schema that it found
        try:
            missing = await pending(connection, migrations)
        except MigrationError as error:
            raise DistributionError(str(error)) from None
        if missing:
            names = ", ".join(migration.name for migration in missing)
            raise DistributionError(f"not migrated: {names}: run officerpc migrate first")
    tables = await citus.list_tables(connection)
    await _refuse_unknown(connection, tables)
    unplaced = [table for table in tables if table.kind != "local" and not table.is_placed]
    dropped = await _dropped_keys(connection) if is_resumed else []
    keys = await _foreign_keys(connection, [table.name for table in unplaced])
    steps = [Step("drop foreign key", key.label) for key in keys]
    for table in unplaced:
        rows = await connection.fetchval(f"SELECT count(*) FROM {table.name}")  # noqa: S608
        action: Action = "copy to every node" if table.kind == "reference" else "distribute by instance_id"
        steps.append(Step(action, table.name, rows))
    steps += [Step("copy function", name) for name in await citus.missing_functions(connection)]
    steps += [Step("add foreign key", key.label) for key in sorted({*dropped, *keys})]
    if steps or is_resumed:
        steps.append(Step("analyze", "all tables"))
    return Plan(nodes, steps, is_resumed)


async def distribute(
    connection: "asyncpg.Connection", migrations: list[Migration], watch: Watch = lambda progress: None
) -> list[Step]:
    """Distribute a migrated database, or go on after an interruption.

    Foreign keys cannot exist while only one of their tables is distributed: all are dropped first, and added
    again at the end. A table keeps them meanwhile, so that a run can be interrupted after any step; `migrate`
    and `serve` refuse the database until a later run has finished. Each table is distributed in a transaction
    of its own, which is rolled back unless the number of rows is the same afterwards.

    Args:
        connection: to the coordinator, direct, as the owner of the tables; in no transaction.
        migrations: all, as from load_migrations.
        watch: is told of the progress.

    Returns:
        the steps that were done.

    Raises:
        DistributionError: the extension or the workers are missing, this is no coordinator, the database is
            not migrated or has tables, functions, triggers or foreign keys that this program does not know,
            servers are running, or rows were lost on the way.
        asyncpg.PostgresError: a step failed; run it again when its cause is removed.
    """
    async with migration_lock(connection):
        steps = (await plan(connection, migrations)).steps
        if not steps:
            return []
        await _refuse_servers(connection)
        await _drop_keys(connection, [step for step in steps if step.action == "drop foreign key"], watch)
        tables = {table.name: table for table in await citus.list_tables(connection)}
        definitions = {key.label: key for key in await _dropped_keys(connection)}
        for step in steps:
            match step.action:
                case "copy to every node" | "distribute by instance_id":
                    await _place_table(connection, tables[step.name], step, watch)
                case "copy function":
                    async with _transaction(connection):
                        await citus.place_function(connection, step.name)
                    watch(Progress(step, 0, True))
                case "add foreign key":
                    watch(Progress(step, 0, False))
                    await _add_key(connection, definitions[step.name])
                    watch(Progress(step, 0, True))
                case "analyze":
                    watch(Progress(step, 0, False))
                    await _analyze(connection, [one.name for one in tables.values() if one.kind != "local"])
                    watch(Progress(step, 0, True))
        await connection.execute(f"DROP TABLE {citus.LEDGER}")
        return steps


# --- what must be there -------------------------------------------------------------------------------


async def _ready_nodes(connection: "asyncpg.Connection") -> list[str]:
    """The nodes that get the rows of tenants."""
    if not await citus.has_extension(connection):
        raise DistributionError(
            "the database has no extension citus: create it in it on every node, then add the workers"
        )
    if await connection.fetchval("SELECT groupid FROM pg_dist_local_group") != 0:
        raise DistributionError("this node is a worker: connect to the coordinator")
    rows = await connection.fetch(
        "SELECT nodename || ':' || nodeport AS name, groupid, shouldhaveshards FROM pg_dist_node"
        " WHERE isactive AND noderole = 'primary' ORDER BY nodename, nodeport"
    )
    if not any(row["groupid"] == 0 for row in rows):
        raise DistributionError(
            "the workers do not know the coordinator: SELECT citus_set_coordinator_host('its address')"
        )
    nodes = [row["name"] for row in rows if row["shouldhaveshards"]]
    if not nodes:
        raise DistributionError(
            "the cluster has no worker: SELECT citus_add_node('its address', 5432) for each"
        )
    return nodes


async def _refuse_unknown(connection: "asyncpg.Connection", tables: list[citus.Table]) -> None:
    """Refuse what this program's migrations have not made: it could be wrong on several nodes."""
    unknown = [f"table {table.name}" for table in tables if table.kind is None]
    ours = [table.name for table in tables if table.kind is not None]
    rows = await connection.fetch(
        "SELECT p.oid::regprocedure::text AS name FROM pg_proc AS p"
        " WHERE p.pronamespace = current_schema()::regnamespace AND p.oid::regprocedure::text <> ALL($1)"
        " AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e') ORDER BY 1",
        [*citus.NODE_FUNCTIONS, *citus.LOCAL_FUNCTIONS],
    )
    unknown += [f"function {row['name']}" for row in rows]
    rows = await connection.fetch(
        "SELECT tgname::text AS name, tgrelid::regclass::text AS owner FROM pg_trigger"
        " WHERE NOT tgisinternal AND tgname <> ALL($1) AND tgrelid = any($2::text[]::regclass[]) ORDER BY 1",
        list(citus.TRIGGERS),
        ours,
    )
    unknown += [f"trigger {row['name']} of {row['owner']}" for row in rows]
    # Either both tables are of tenants, and both sides of the key have the instance at the same place; or the
    # key refers to a reference table, which is on every node; or both are local.
    rows = await connection.fetch(
        """
        SELECT c.conname::text AS name, c.conrelid::regclass::text AS owner
        FROM pg_constraint AS c
        WHERE
            c.contype = 'f'
            AND (c.conrelid = any($4::text[]::regclass[]) OR c.confrelid = any($4::text[]::regclass[]))
            AND NOT coalesce(
                CASE
                    WHEN c.confrelid::regclass::text = any($2) THEN c.conrelid::regclass::text = any($1 || $2)
                    WHEN c.confrelid::regclass::text = any($1) THEN c.conrelid::regclass::text = any($1) AND (
                        SELECT bool_or(a.attname = 'instance_id' AND f.attname = 'instance_id')
                        FROM unnest(c.conkey, c.confkey) AS pair (here, there)
                        INNER JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = pair.here
                        INNER JOIN pg_attribute AS f ON f.attrelid = c.confrelid AND f.attnum = pair.there
                    )
                    ELSE c.conrelid::regclass::text = any($3) AND c.confrelid::regclass::text = any($3)
                END,
                false
            )
        ORDER BY 2, 1
        """,
        list(citus.TENANT_TABLES),
        list(citus.REFERENCE_TABLES),
        list(citus.LOCAL_TABLES),
        ours,
    )
    unknown += [f"foreign key {row['name']} of {row['owner']}" for row in rows]
    if unknown:
        raise DistributionError(
            f"not known to this officerpc: {', '.join(unknown)}: drop them or move them to another schema"
        )


async def _refuse_servers(connection: "asyncpg.Connection") -> None:
    """Refuse while servers could write rows that no foreign key checks."""
    count = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'officerpc' AND pid <> pg_backend_pid()"
    )
    if count:
        raise DistributionError(
            f"{count} connections of officerpc are open: stop all servers and officerpc work first"
        )


# --- the steps ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _transaction(connection: "asyncpg.Connection") -> AsyncIterator[None]:
    async with connection.transaction():
        for setting in citus.SAFE_SETTINGS:
            await connection.execute(setting)
        yield


async def _foreign_keys(connection: "asyncpg.Connection", tables: list[str]) -> list[_ForeignKey]:
    rows = await connection.fetch(
        "SELECT conrelid::regclass::text, conname::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE contype = 'f' AND conrelid = any($1::text[]::regclass[]) ORDER BY 1, 2",
        tables,
    )
    return [_ForeignKey(*row) for row in rows]


async def _dropped_keys(connection: "asyncpg.Connection") -> list[_ForeignKey]:
    rows = await connection.fetch(f"SELECT owner, name, definition FROM {citus.LEDGER} ORDER BY 1, 2")  # noqa: S608
    return [_ForeignKey(*row) for row in rows]


async def _drop_keys(connection: "asyncpg.Connection", steps: list[Step], watch: Watch) -> None:
    """Drop foreign keys, and keep their definitions, in one transaction."""
    async with _transaction(connection):
        await connection.execute(
            f"CREATE TABLE IF NOT EXISTS {citus.LEDGER} (owner text NOT NULL, name text NOT NULL,"
            " definition text NOT NULL, PRIMARY KEY (owner, name))"
        )
        wanted = {step.name: step for step in steps}
        unplaced = [table.name for table in await citus.list_tables(connection) if not table.is_placed]
        for key in await _foreign_keys(connection, unplaced):
            if key.label in wanted:
                await connection.execute(f"INSERT INTO {citus.LEDGER} VALUES ($1, $2, $3)", *key)  # noqa: S608
                await connection.execute(f'ALTER TABLE {key.table} DROP CONSTRAINT "{key.name}"')
    for step in steps:
        watch(Progress(step, 0, True))


async def _place_table(
    connection: "asyncpg.Connection", table: citus.Table, step: Step, watch: Watch
) -> None:
    watch(Progress(step, 0, False))

    def listen(_: Any, message: Any) -> None:
        if copied := re.fullmatch(r"Copied (\d+) rows", str(message)):
            watch(Progress(step, int(copied[1]), False))

    connection.add_log_listener(listen)
    try:
        async with _transaction(connection):
            await connection.execute("SET LOCAL client_min_messages = debug1")  # which has the rows
            await connection.execute(f"LOCK TABLE {table.name} IN ACCESS EXCLUSIVE MODE")
            before = await connection.fetchval(f"SELECT count(*) FROM {table.name}")  # noqa: S608
            await citus.place_table(connection, table)
            after = await connection.fetchval(f"SELECT count(*) FROM {table.name}")  # noqa: S608
            if after != before:
                raise DistributionError(
                    f"{table.name} had {before} rows and would have {after}: rolled back, run it again"
                )
    finally:
        connection.remove_log_listener(listen)
    watch(Progress(step, before, True))


async def _analyze(connection: "asyncpg.Connection", tables: list[str]) -> None:
    """New tables have no statistics, and the catalogues have changed: the first minutes would be slow."""
    await connection.execute("ANALYZE")  # local tables and catalogues
    for table in tables:
        await connection.execute(f"ANALYZE {table}")


async def _add_key(connection: "asyncpg.Connection", key: _ForeignKey) -> None:
    async with _transaction(connection):
        await connection.execute(f'ALTER TABLE {key.table} ADD CONSTRAINT "{key.name}" {key.definition}')
        await connection.execute(
            f"DELETE FROM {citus.LEDGER} WHERE owner = $1 AND name = $2",  # noqa: S608
            key.table,
            key.name,
        )
