-- name: insert_events(instance_id, after_seq, types, user_ids, befores, afters, method, actor_kind, key_id, key_name, request_id, address, origin)!
-- Events of one actor, in order. The numbers of a transaction's events in an instance continue after after_seq.
INSERT INTO events (
    instance_id, place, type, user_id, before, after, method, actor_kind, key_id, key_name, request_id, address, origin
)
SELECT
    :instance_id, :after_seq::integer + change.seq, change.type, change.user_id, change.before, change.after, :method,
    :actor_kind, :key_id, :key_name, :request_id, :address, :origin
FROM unnest(:types::text [], :user_ids::bigint [], :befores::jsonb [], :afters::jsonb [])
WITH ORDINALITY AS change (type, user_id, before, after, seq);

-- name: read_events(instance_id, xid, seq, horizon, row_limit, byte_limit)
-- Events after a position, in the order in which they become readable: up to the oldest running transaction, so that
-- later commits come later. horizon: from an earlier find_feed_end. The sort is by the column xid, not by its text.
-- The page ends with the event that reaches byte_limit; page_bytes: the size of it and those before it.
-- pg_column_size reads no TOAST.
SELECT
    xid::text AS xid, place AS seq, id::text AS id, type, user_id, before, after, origin,
    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS moment, page_bytes
FROM (
    SELECT
        xid, place, id, type, user_id, before, after, origin, created_at, bytes,
        (sum(bytes) OVER (ORDER BY xid, place ROWS UNBOUNDED PRECEDING))::bigint AS page_bytes
    FROM (
        SELECT
            xid, place, id, type, user_id, before, after, origin, created_at,
            coalesce(pg_column_size(before), 0) + coalesce(pg_column_size(after), 0) AS bytes
        FROM events
        WHERE
            instance_id = :instance_id AND (xid, place) > (:xid::text::xid8, :seq::integer)
            AND xid < :horizon::text::xid8
        ORDER BY events.xid, events.place LIMIT :row_limit
    ) AS looked
) AS page
WHERE page_bytes - bytes < :byte_limit
ORDER BY page.xid, page.place;

-- name: find_feed_end()$
-- Every event before it can be read: all older transactions have ended. It only grows.
SELECT event_horizon()::text AS xid;

-- name: get_event(instance_id, event_id)^
-- One event by its id.
SELECT
    id::text AS id, type, user_id, before, after, origin,
    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS moment
FROM events
WHERE instance_id = :instance_id AND id = :event_id;

-- name: find_event_users(instance_id, key)
-- The users that an e-mail or login may mean: the user who has it, deleted or not, and purged users who had it
-- (indexes events_of_purged and events_of_purged_logins).
SELECT id AS user_id FROM users
WHERE instance_id = :instance_id AND email_key = :key
UNION
SELECT user_id FROM logins
WHERE instance_id = :instance_id AND login_key = :key
UNION
SELECT user_id FROM events
WHERE instance_id = :instance_id AND type = 'user.purged' AND lower(before ->> 'email') = :key
UNION
SELECT user_id FROM events
WHERE
    instance_id = :instance_id AND type = 'user.purged' AND before ->> 'login' IS NOT NULL
    AND lower(before ->> 'login') = :key;

-- name: list_events(instance_id, user_ids, type, method, since, until, before_time, before_xid, before_seq, look, row_limit, byte_limit)
-- A page of the audit, the newest first. Without user_ids at most look events are searched for the type and method
-- (index events_by_time); with user_ids, which are distinct, all events of these users are: user by user, because for
-- user_id = any(...) the planner may read events_by_time and not events_by_user. byte_limit and page_bytes are as in
-- read_events.
SELECT
    id::text AS id, type, user_id AS "userId", before, after, method,
    coalesce(actor_kind, CASE WHEN key_id > 0 THEN 'key' ELSE 'system' END) AS actor_kind, key_id, key_name,
    request_id AS "requestId", address, origin,
    to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') AS "createdAt",
    created_at, xid::text AS xid, place AS seq, page_bytes
FROM (
    SELECT
        asked.*,
        (sum(bytes) OVER (ORDER BY created_at DESC, xid DESC, place DESC ROWS UNBOUNDED PRECEDING))::bigint AS page_bytes
    FROM (
        SELECT
            looked.*, coalesce(pg_column_size(before), 0) + coalesce(pg_column_size(after), 0) AS bytes
        FROM (
            (
                SELECT * FROM events
                WHERE
                    instance_id = :instance_id AND :user_ids::bigint[] IS NULL
                    AND created_at >= :since AND created_at < :until
                    AND (created_at, xid, place) < (:before_time, :before_xid::text::xid8, :before_seq::integer)
                ORDER BY events.created_at DESC, events.xid DESC, events.place DESC
                LIMIT :look
            )
            UNION ALL
            (
                SELECT own.*
                FROM unnest(:user_ids::bigint[]) AS named (user_id)
                CROSS JOIN LATERAL (
                    SELECT * FROM events
                    WHERE
                        instance_id = :instance_id AND user_id = named.user_id
                        AND created_at >= :since AND created_at < :until
                        AND (created_at, xid, place) < (:before_time, :before_xid::text::xid8, :before_seq::integer)
                        AND (:type::text IS NULL OR type = :type) AND (:method::text IS NULL OR method = :method)
                    ORDER BY events.created_at DESC, events.xid DESC, events.place DESC
                    LIMIT :row_limit
                ) AS own
            )
        ) AS looked
        WHERE (:type::text IS NULL OR type = :type) AND (:method::text IS NULL OR method = :method)
        ORDER BY looked.created_at DESC, looked.xid DESC, looked.place DESC
        LIMIT :row_limit
    ) AS asked
) AS page
WHERE page_bytes - bytes < :byte_limit
ORDER BY page.created_at DESC, page.xid DESC, page.place DESC;

-- name: skip_events(instance_id, since, until, before_time, before_xid, before_seq, look)^
-- The last event that list_events searched, if it searched as many as look.
SELECT created_at, xid::text AS xid, place AS seq FROM events
WHERE
    instance_id = :instance_id AND created_at >= :since AND created_at < :until
    AND (created_at, xid, place) < (:before_time, :before_xid::text::xid8, :before_seq::integer)
ORDER BY events.created_at DESC, events.xid DESC, events.place DESC
OFFSET :look - 1 LIMIT 1;
