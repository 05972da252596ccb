-- Readiness is shown by a real write: one row, which each worker updates every few seconds while it is asked.
CREATE TABLE heartbeats (
    id integer NOT NULL,
    written_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT heartbeats_pkey PRIMARY KEY (id)
) WITH (fillfactor = 10);

-- Whatever has a lower number is committed or will never be. Transactions are numbered by the cluster, but only one of
-- this database can still write events: those that are known to run in another one are passed over. Who runs a
-- transaction is read from its lock, which every role may see, after the snapshot was taken. One whose lock is not there,
-- as it has just begun or just ended, counts as ours.
CREATE OR REPLACE FUNCTION event_horizon() RETURNS xid8
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    snapshot pg_snapshot := pg_current_snapshot();
    horizon xid8 := pg_snapshot_xmax(snapshot);
BEGIN
    IF pg_snapshot_xmin(snapshot) < horizon THEN
        SELECT coalesce(min(running.xid::text::bigint)::text::xid8, horizon) INTO horizon
        FROM pg_snapshot_xip(snapshot) AS running (xid)
        WHERE running.xid::xid NOT IN (
            SELECT l.transactionid
            FROM pg_locks AS l
            WHERE
                l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted
                AND l.pid = any(array(
                    SELECT a.pid
                    FROM pg_stat_activity AS a
                    WHERE a.datid <> (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
                ))
            UNION ALL
            SELECT p.transaction
            FROM pg_prepared_xacts AS p
            WHERE p.database <> current_database()
        );
    END IF;
    -- The snapshot does not name the transaction that asks.
    horizon := least(horizon, pg_current_xact_id_if_assigned());
    RETURN (SELECT (horizon::text::bigint + ahead)::text::xid8 FROM event_clock);
END
$$;
