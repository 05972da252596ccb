"""`officerpc instances place`: puts an instance on a shard of its own, on a chosen node."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, NamedTuple, TypeAlias

import asyncpg

from server.postgres import citus


class PlacementError(Exception):
    """The instance cannot be placed so; the message says why."""


class Placement(NamedTuple):
    """Where the rows of an instance are."""

    node: str
    """host:port"""
    shard: int
    """Of the table users."""
    is_alone: bool
    """Whether no other instance can be on this shard."""
    size: int
    """Bytes of the shard and of those beside it, with all instances on them."""
    rows: dict[str, int]
    """The instance's own, of each table that has any."""


Action: TypeAlias = Literal["isolate", "move"]


class Move(NamedTuple):
    """What is to be done with an instance."""

    placement: Placement
    steps: list[Action]
    node: str
    """Where it will be."""


class Copied(NamedTuple):
    """How far a step is."""

    step: Action
    copied: int
    """Bytes."""
    total: int


async def plan(connection: "asyncpg.Connection", instance_id: int, node: str | None) -> Move:
    """What place would do. Reads only.

    Args:
        connection: to the coordinator, direct.
        instance_id: of an instance that exists.
        node: where it is to be: host:port, or the host if it has one node; None: where it is.

    Raises:
        PlacementError: the database is not distributed, or the cluster has no such node for tenants.
    """
    if not await citus.is_distributed(connection) or await citus.is_half_distributed(connection):
        raise PlacementError("the database is not distributed: see officerpc distribute")
    placement = await _placement(connection, instance_id)
    rows = await connection.fetch(
        "SELECT nodename AS host, nodename || ':' || nodeport AS name FROM pg_dist_node"
        " WHERE isactive AND noderole = 'primary' AND shouldhaveshards ORDER BY 2"
    )
    nodes = [row["name"] for row in rows]
    chosen = [row["name"] for row in rows if node in (row["name"], row["host"])]
    if node is not None and len(chosen) != 1:
        reason = "has several nodes" if chosen else "is no node for tenants"
        raise PlacementError(f"{node} {reason}: choose one of {', '.join(nodes)}")
    target = placement.node if node is None else chosen[0]
    steps: list[Action] = [] if placement.is_alone else ["isolate"]
    if target != placement.node:
        steps.append("move")
    return Move(placement, steps, target)


async def place(
    connection: "asyncpg.Connection",
    instance_id: int,
    node: str | None,
    watching: Callable[[], Awaitable["asyncpg.Connection"]],
    watch: Callable[[Copied], None] = lambda copied: None,
) -> Move:
    """Put an instance on a shard of its own, and move it to a node, online.

    The move copies by logical replication: reads and writes go on, except that writes of the instance wait
    for a moment at its end. While the instance is isolated, reads go on, and writes of all instances on its
    shard wait: Citus 13.2 can also split shards by logical replication, but then an UPDATE during the copy
    makes it wait forever ("publisher did not send replica identity column"): the new shards on the same node
    have no primary key yet. If a step is interrupted, the instance stays where it was, and Citus removes what
    was copied within minutes.

    It takes no lock of migrations, for which the start of a server would wait.

    Args:
        connection: to the coordinator, direct, as the owner of the tables; in no transaction.
        instance_id: of an instance that exists.
        node: as for plan.
        watching: opens another connection, to read the progress.
        watch: is told of the progress, every second.

    Returns:
        what was done.

    Raises:
        PlacementError: as plan does.
        asyncpg.PostgresError: a step failed, for example as wal_level of a worker is not logical.
    """
    move = await plan(connection, instance_id, node)
    for step in move.steps:
        async with _watched(watching, step, watch):
            if step == "isolate":
                await connection.fetchval(
                    "SELECT isolate_tenant_to_new_shard('users', $1::bigint, 'CASCADE', 'block_writes')",
                    instance_id,
                )
            else:
                now = await _placement(connection, instance_id)
                host, _, port = now.node.rpartition(":")
                to_host, _, to_port = move.node.rpartition(":")
                await connection.execute(
                    "SELECT citus_move_shard_placement($1, $2, $3, $4, $5, 'force_logical')",
                    now.shard, host, int(port), to_host, int(to_port),
                )  # fmt: skip
    return move


async def _placement(connection: "asyncpg.Connection", instance_id: int) -> Placement:
    row = await connection.fetchrow(
        """
        SELECT
            s.shardid, s.shardminvalue = s.shardmaxvalue AS is_alone, n.nodename || ':' || n.nodeport AS node,
            (
                SELECT sum(beside.shard_size)
                FROM citus_shards AS beside
                INNER JOIN pg_dist_shard AS d ON beside.shardid = d.shardid
                WHERE d.shardminvalue = s.shardminvalue AND beside.colocation_id = t.colocationid
            )::bigint AS size
        FROM pg_dist_shard AS s
        INNER JOIN pg_dist_partition AS t ON s.logicalrelid = t.logicalrelid
        INNER JOIN pg_dist_placement AS p ON s.shardid = p.shardid
        INNER JOIN pg_dist_node AS n ON p.groupid = n.groupid AND n.noderole = 'primary'
        WHERE s.shardid = get_shard_id_for_distribution_column('users', $1::bigint)
        """,
        instance_id,
    )
    rows = {}
    for table in citus.TENANT_TABLES:
        count = await connection.fetchval(
            f"SELECT count(*) FROM {table} WHERE instance_id = $1",  # noqa: S608
            instance_id,
        )
        if count:
            rows[table] = count
    return Placement(row["node"], row["shardid"], row["is_alone"], row["size"], rows)


@contextlib.asynccontextmanager
async def _watched(
    watching: Callable[[], Awaitable["asyncpg.Connection"]], step: Action, watch: Callable[[Copied], None]
) -> AsyncIterator[None]:
    """Tell of the progress of a step while the block runs."""

    async def look() -> None:
        connection = await watching()
        try:
            while True:
                row = await connection.fetchrow(
                    "SELECT coalesce(sum(least(target_shard_size, source_shard_size)), 0)::bigint AS copied,"
                    " coalesce(sum(source_shard_size), 0)::bigint AS total FROM get_rebalance_progress()"
                )
                if row["total"]:
                    watch(Copied(step, row["copied"], row["total"]))
                await asyncio.sleep(1)
        finally:
            await connection.close(timeout=5)

    looking = asyncio.create_task(look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
