-- The rows to take are chosen once. As a subquery of the DELETE they could be chosen again for each row of the table, and
-- SKIP LOCKED and LIMIT would choose others each time.
CREATE OR REPLACE FUNCTION purge_old_events(row_limit integer) RETURNS SETOF uuid
LANGUAGE sql
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    WITH due AS MATERIALIZED (
        SELECT instance_id, xid, place
        FROM events
        WHERE (created_at AT TIME ZONE 'UTC')::date < (now() AT TIME ZONE 'UTC')::date - 365
        ORDER BY (created_at AT TIME ZONE 'UTC')::date
        LIMIT row_limit
        FOR UPDATE SKIP LOCKED
    )
    DELETE FROM events
    USING due
    WHERE events.instance_id = due.instance_id AND events.xid = due.xid AND events.place = due.place
    RETURNING events.id;
END;
