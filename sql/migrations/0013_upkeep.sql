-- Upkeep among many rows, and an audit that the application's role cannot alter.

-- Retention is a matter of the instance: looked for instance by instance, and not through all deleted users of all.
CREATE INDEX users_deleted_since ON users (instance_id, deleted_at) WHERE deleted_at IS NOT NULL;

DROP INDEX users_retention;

CREATE INDEX pgqueuer_parked ON pgqueuer (updated) WHERE status = 'failed'::pgqueuer_status;

-- Also where session_replication_role would silence triggers.
ALTER TABLE events ENABLE ALWAYS TRIGGER events_stay;

ALTER TABLE events ENABLE ALWAYS TRIGGER events_are_not_emptied;

-- It runs with the rights of purge_old_events, and no operator or function of whoever calls that must be found first.
ALTER FUNCTION refuse_to_alter_events() SET search_path = pg_catalog, pg_temp;

-- Takes events that have been kept for their time, 365 whole days of UTC, with the rights of the owner of the tables: a
-- role that may only read and insert events can have it done.
CREATE FUNCTION purge_old_events(row_limit integer) RETURNS SETOF uuid
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    DELETE FROM events
    USING (
        SELECT instance_id, xid, place
        FROM events
        WHERE (created_at AT TIME ZONE 'UTC')::date < (now() AT TIME ZONE 'UTC')::date - 365
        ORDER BY (created_at AT TIME ZONE 'UTC')::date
        LIMIT row_limit
        FOR UPDATE SKIP LOCKED
    ) AS due
    WHERE events.instance_id = due.instance_id AND events.xid = due.xid AND events.place = due.place
    RETURNING events.id;
END;
