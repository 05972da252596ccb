"""Fills the databases of bench.py."""

import random
from typing import Any

import asyncpg
from rich.progress import Progress

from server.directory.users import CreateUser

FIRST_INSTANCE = "SELECT id FROM instances ORDER BY id LIMIT 1"
FILL = """
WITH numbers AS (
    SELECT n, 'user' || n || '@example.com' AS email
    FROM generate_series($2::bigint, $3::bigint) AS n
), new_users AS (
    INSERT INTO users (instance_id, id, email, email_key, display_name, profile, app_values, settings, apps)
    SELECT $1, n + 1, email, email, 'User ' || n, $4, $5, $6, $7 FROM numbers
), new_mailboxes AS (
    INSERT INTO mailboxes (instance_id, id, user_id, role)
    SELECT $1, 6 * n + place, n + 1, role FROM numbers CROSS JOIN
    unnest('{inbox,spam,sent,trash,archive,drafts}'::text[]) WITH ORDINALITY AS roles (role, place)
), new_calendars AS (
    INSERT INTO calendars (instance_id, id, user_id, role) SELECT $1, n + 1, n + 1, 'main' FROM numbers
), new_folders AS (
    INSERT INTO file_folders (instance_id, id, user_id, role)
    SELECT $1, 2 * n + place, n + 1, role FROM numbers CROSS JOIN
    unnest('{root,trash}'::text[]) WITH ORDINALITY AS roles (role, place)
)
UPDATE instance_counters
SET
    users = $3 + 1, living_users = $3 + 1, mailboxes = 6 * $3 + 6, calendars = $3 + 1,
    file_folders = 2 * $3 + 2
WHERE instance_id = $1
"""
"""Users $2 to $3 with the provisioning that createUser makes. User 1 is the administrator."""


async def run_sql(database: str, statement: str) -> Any:
    """The first column of the first row of a statement's result."""
    connection = await asyncpg.connect(database)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def fill(database: str, users: int, progress: Progress) -> None:
    """Create users in a database with one instance."""
    model = CreateUser(email="any@example.com")
    json = (model.profile.model_dump_json(), model.values.model_dump_json())
    task = progress.add_task(f"Filling, {users:,} users", total=users)
    connection = await asyncpg.connect(database)
    try:
        instance = await connection.fetchval(FIRST_INSTANCE)
        # Switches foreign keys off: checking them would take most of the time.
        await connection.execute("SET session_replication_role = replica")
        for first in range(1, users + 1, 10_000):
            last = min(first + 9_999, users)
            await connection.execute(FILL, instance, first, last, *json, model.settings, model.apps)
            progress.update(task, completed=last)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


TREE = """
WITH placed AS (
    SELECT * FROM unnest($2::bigint[], $3::text[]) AS place (id, path)
), new_accounts AS (
    INSERT INTO accounts (instance_id, id, user_id, sponsor_id, title)
    SELECT $1, id, id, 1, 'User ' || (id - 1) FROM placed
)
INSERT INTO positions (instance_id, id, tree_id, account_id, user_id, parent_id, path)
SELECT $1, id, 0, id, id, ltree2text(subpath(path::ltree, -2, 1))::bigint, path::ltree FROM placed
"""


async def grow_tree(database: str, places: int) -> None:
    """Place accounts of the first users in a tree, each below a random earlier one."""
    connection = await asyncpg.connect(database)
    try:
        instance = await connection.fetchval(FIRST_INSTANCE)
        chance = random.Random(42)
        paths = [f"i{instance}.t0.1"]
        for place in range(2, places + 1):
            paths.append(f"{chance.choice(paths)}.{place}")
        await connection.execute("SET session_replication_role = replica")
        for first in range(1, places, 10_000):
            some = range(first, min(first + 10_000, places))
            ids = [place + 1 for place in some]
            await connection.execute(TREE, instance, ids, [paths[place] for place in some])
        counted = "UPDATE instance_counters SET accounts = $2, positions = $2 WHERE instance_id = $1"
        await connection.execute(counted, instance, places)
        await connection.execute("VACUUM ANALYZE accounts, positions")
    finally:
        await connection.close()


async def branch_sizes(database: str, wanted: list[int]) -> dict[int, int]:
    """Accounts of tree 0 and the numbers of accounts below them, the nearest to each wanted number."""
    connection = await asyncpg.connect(database)
    try:
        rows = await connection.fetch("SELECT account_id, parent_id, id FROM positions ORDER BY id DESC")
    finally:
        await connection.close()
    below = dict.fromkeys((row["id"] for row in rows), 0)
    for row in rows:  # from the last to the first, as children have higher ids than their parents
        if row["parent_id"] is not None:
            below[row["parent_id"]] += below[row["id"]] + 1
    accounts = {row["id"]: row["account_id"] for row in rows}

    nearest = [min(below, key=lambda place: abs(below[place] - size)) for size in wanted]
    return {accounts[place]: below[place] for place in nearest}
