-- The queue of jobs, on the pattern of deliveries. It replaces the tables of pgqueuer (0003_queue.sql).

-- instance_id: 0 for a job that concerns no tenant. due_at: when the job is tried next; while it runs, when its lease
-- ends and another worker may take it; once it is parked, since when. attempts only grows, so that it names a try;
-- first_attempt: what it was when the tries began to be counted. The ids go on after those of pgqueuer, which old servers
-- still use during a rolling upgrade. On a sharded cluster the table stays local to the coordinator.
CREATE TABLE jobs (
    instance_id bigint NOT NULL,
    id bigint NOT NULL DEFAULT nextval('pgqueuer_id_seq'),
    kind text NOT NULL,
    payload bytea NOT NULL DEFAULT '{}',
    state text NOT NULL DEFAULT 'waiting',
    attempts integer NOT NULL DEFAULT 0,
    first_attempt integer NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    due_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT jobs_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT jobs_state_known CHECK (state IN ('waiting', 'running', 'parked'))
);

ALTER SEQUENCE pgqueuer_id_seq OWNED BY jobs.id;

CREATE INDEX jobs_due ON jobs (instance_id, kind, due_at) WHERE state <> 'parked';

CREATE INDEX jobs_by_state ON jobs (state, id);

-- Moves what waits in pgqueuer's table, or was parked there, with all its tries ahead. What a worker of the old version is
-- doing is left to it until its heartbeat has stopped for a minute. Workers call this at each look, as old servers may
-- still write into that table; a later release drops it. The instance is read from the text of the payload, as a JSON
-- type refuses texts with \u0000.
CREATE FUNCTION adopt_old_jobs() RETURNS void
LANGUAGE plpgsql
AS $$
BEGIN
    -- A DELETE notifies the old workers even if it finds nothing.
    IF EXISTS (SELECT FROM pgqueuer) THEN
        WITH found AS MATERIALIZED (
            SELECT id
            FROM pgqueuer
            WHERE status <> 'picked' OR heartbeat < now() - interval '1 minute'
            FOR UPDATE SKIP LOCKED
        ),
        old AS (
            DELETE FROM pgqueuer
            USING found
            WHERE pgqueuer.id = found.id
            RETURNING pgqueuer.*
        )
        INSERT INTO jobs (instance_id, id, kind, payload, state, created_at, due_at)
        SELECT
            coalesce(substring(convert_from(payload, 'UTF8') FROM '^\{"instance_id":([0-9]+)')::bigint, 0),
            id, entrypoint, coalesce(payload, '{}'), CASE status WHEN 'failed' THEN 'parked' ELSE 'waiting' END,
            created, CASE status WHEN 'failed' THEN updated ELSE execute_after END
        FROM old;
    END IF;
END
$$;

SELECT adopt_old_jobs()
