-- name: enqueue_job(instance_id, kind, payload, delay)!
-- Adds a job, due delay seconds after the start of this transaction. Workers are notified at the commit.
WITH job AS (
    INSERT INTO jobs (instance_id, kind, payload, due_at)
    VALUES (:instance_id, :kind, :payload, now() + make_interval(secs => :delay))
    RETURNING instance_id, kind
)

SELECT pg_notify('officerpc_jobs', instance_id || ' ' || kind) FROM job;

-- name: renew_leases(instance_ids, job_ids, attempts, lease)!
-- Extends the leases of running tries to lease seconds from now.
UPDATE jobs
SET due_at = now() + make_interval(secs => :lease)
FROM unnest(:instance_ids::bigint[], :job_ids::bigint[], :attempts::integer[]) AS one (instance_id, id, attempt)
WHERE
    jobs.instance_id = one.instance_id AND jobs.id = one.id AND jobs.attempts = one.attempt
    AND jobs.state = 'running';

-- name: settle_jobs(instance_ids, job_ids, attempts, outcomes, due_ins)!
-- Stores the outcomes of tries: done, retried, parked, stopped (with its worker), or suspended (the number of tries
-- starts again). If a lease ended and another worker tries the job again, the first try counts only if it succeeded.
-- Rows are locked in the order of their keys.
WITH told AS (
    SELECT *
    FROM unnest(:instance_ids::bigint[], :job_ids::bigint[], :attempts::integer[], :outcomes::text[], :due_ins::float8[])
    AS one (instance_id, id, attempt, outcome, due_in)
),

held AS MATERIALIZED (
    SELECT j.instance_id, j.id, told.outcome, told.due_in
    FROM told
    INNER JOIN jobs AS j ON told.instance_id = j.instance_id AND told.id = j.id
    WHERE told.outcome = 'done' OR (j.attempts = told.attempt AND j.state = 'running')
    ORDER BY j.instance_id, j.id
    FOR UPDATE OF j
),

done AS (
    DELETE FROM jobs
    USING held
    WHERE jobs.instance_id = held.instance_id AND jobs.id = held.id AND held.outcome = 'done'
)

UPDATE jobs
SET
    state = CASE held.outcome WHEN 'parked' THEN 'parked' ELSE 'waiting' END,
    due_at = now() + make_interval(secs => held.due_in),
    first_attempt = CASE held.outcome WHEN 'suspended' THEN jobs.attempts ELSE jobs.first_attempt END
FROM held
WHERE jobs.instance_id = held.instance_id AND jobs.id = held.id AND held.outcome <> 'done';
