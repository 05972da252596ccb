"""Invariants of the database, beyond its constraints, that are checked after each test."""

import asyncpg

_USERS_OF = "instance_id = u.instance_id AND user_id = u.id"
_COUNTED = (
    "users", "mailboxes", "calendars", "file_folders", "sessions", "accounts", "positions", "plans", "user_plans",
    "webhooks", "groups",
)  # fmt: skip
"""Tables whose ids come from instance_counters."""

INVARIANTS = {
    "every instance has its counters": """
        SELECT i.id, 0::bigint FROM instances AS i
        WHERE i.id NOT IN (SELECT c.instance_id FROM instance_counters AS c)""",
    "living_users is the number of users that are not deleted": """
        SELECT c.instance_id, c.living_users FROM instance_counters AS c
        WHERE c.living_users <> (
            SELECT count(*) FROM users AS u WHERE u.instance_id = c.instance_id AND u.deleted_at IS NULL
        )""",
    "is_suspended is the opposite of the instance's is_active": """
        SELECT c.instance_id, 0::bigint FROM instance_counters AS c
        INNER JOIN instances AS i ON i.id = c.instance_id
        WHERE c.is_suspended = i.is_active""",
    "a suspended instance has no sessions": """
        SELECT s.instance_id, s.id FROM sessions AS s
        INNER JOIN instances AS i ON i.id = s.instance_id
        WHERE NOT i.is_active""",
    "suspended_at is set while is_active is false": """
        SELECT instance_id, id FROM users WHERE is_active = (suspended_at IS NOT NULL)""",
    "every user has six mailboxes, a calendar and two folders": f"""
        SELECT u.instance_id, u.id FROM users AS u
        WHERE
            (SELECT count(*) FROM mailboxes WHERE {_USERS_OF}) <> 6
            OR (SELECT count(*) FROM calendars WHERE {_USERS_OF}) <> 1
            OR (SELECT count(*) FROM file_folders WHERE {_USERS_OF}) <> 2""",
    "suspended and deleted users have no sessions": """
        SELECT s.instance_id, s.user_id FROM sessions AS s
        INNER JOIN users AS u ON u.instance_id = s.instance_id AND u.id = s.user_id
        WHERE NOT u.is_active OR u.deleted_at IS NOT NULL""",
    "a login of a user is in logins": """
        SELECT u.instance_id, u.id FROM users AS u
        LEFT JOIN logins AS l ON l.instance_id = u.instance_id AND l.user_id = u.id
        WHERE (u.login IS NULL) <> (l.user_id IS NULL)""",
    "no login is another user's e-mail": """
        SELECT l.instance_id, l.user_id FROM logins AS l
        INNER JOIN users AS u ON u.instance_id = l.instance_id AND u.email_key = l.login_key""",
    "a picture is the avatar of its user": """
        SELECT p.instance_id, p.user_id FROM pictures AS p
        INNER JOIN users AS u ON u.instance_id = p.instance_id AND u.id = p.user_id
        WHERE strpos(u.avatar, p.name) = 0""",
    "a position is below that of its parent": """
        SELECT p.instance_id, p.id FROM positions AS p
        LEFT JOIN positions AS parent ON parent.instance_id = p.instance_id AND parent.id = p.parent_id
        WHERE
            ltree2text(subpath(p.path, -1)) <> p.id::text
            OR (parent.id IS NOT NULL AND subpath(p.path, 0, -1) <> parent.path)""",
    "a key's default instance is one of its instances": """
        SELECT k.default_instance_id, k.id FROM api_keys AS k
        WHERE
            k.default_instance_id IS NOT NULL
            AND NOT EXISTS (
                SELECT FROM api_key_instances AS held
                WHERE held.api_key_id = k.id AND held.instance_id = k.default_instance_id
            )""",
    "an event names a user that exists or was purged": """
        SELECT DISTINCT e.instance_id, e.user_id FROM events AS e
        WHERE
            e.user_id IS NOT NULL
            AND NOT EXISTS (SELECT FROM users AS u WHERE u.instance_id = e.instance_id AND u.id = e.user_id)
            AND NOT EXISTS (
                SELECT FROM events AS purged
                WHERE
                    purged.instance_id = e.instance_id AND purged.user_id = e.user_id
                    AND purged.type = 'user.purged'
            )""",
    "a purged user does not exist": """
        SELECT u.instance_id, u.id FROM users AS u
        INNER JOIN events AS e ON e.instance_id = u.instance_id AND e.user_id = u.id
        WHERE e.type = 'user.purged'""",
    "users are deleted if their events say so": """
        SELECT u.instance_id, u.id FROM users AS u
        INNER JOIN (
            SELECT
                instance_id, user_id,
                count(*) FILTER (WHERE type = 'user.created') AS created,
                count(*) FILTER (WHERE type = 'user.deleted') AS deleted,
                count(*) FILTER (WHERE type = 'user.restored') AS restored
            FROM events
            WHERE type IN ('user.created', 'user.deleted', 'user.restored')
            GROUP BY 1, 2
        ) AS told ON told.instance_id = u.instance_id AND told.user_id = u.id
        WHERE told.created = 1 AND told.deleted - told.restored <> (u.deleted_at IS NOT NULL)::integer""",
    **{
        f"ids of {table} are counted": f"""
        SELECT t.instance_id, t.id FROM {table} AS t
        INNER JOIN instance_counters AS c ON c.instance_id = t.instance_id
        WHERE t.id > c.{table}"""
        for table in _COUNTED
    },
}
"""Each query selects the instances and ids (of users, if it is about users) that violate it."""

_ALL = "\nUNION ALL\n".join(
    f"(SELECT {number} AS number, found.* FROM ({query}\nLIMIT 5) AS found)"
    for number, query in enumerate(INVARIANTS.values())
)


async def violated(db: asyncpg.Connection) -> dict[str, list[tuple[int, int]]]:
    """The violated invariants, each with instances and ids of at most five rows that violate it."""
    names, found = tuple(INVARIANTS), dict[str, list[tuple[int, int]]]()
    for number, instance_id, row_id in await db.fetch(_ALL):
        found.setdefault(names[number], []).append((instance_id, row_id))
    return found
