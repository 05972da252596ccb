-- name: enqueue_job(kind, payload, delay)!
-- A job for the queue, from delay seconds after the start of this transaction on.
INSERT INTO pgqueuer (priority, entrypoint, payload, execute_after, status)
VALUES (0, :kind, :payload, now() + make_interval(secs => :delay), 'queued');

-- name: count_tries(job_id)$
-- How often a job was begun since it was last parked. Its attempts count failures alone, and a worker that
-- died with it has reported none.
SELECT count(*)
FROM pgqueuer_log
WHERE
    job_id = :job_id AND status = 'picked'
    AND id > coalesce(
        (SELECT max(parked.id) FROM pgqueuer_log AS parked WHERE parked.job_id = :job_id AND parked.status = 'failed'),
        0
    );

-- name: forget_tries(job_id)!
-- A job that waits for its instance has all its tries again: see count_tries.
DELETE FROM pgqueuer_log
WHERE job_id = :job_id AND status = 'picked';

-- name: list_jobs(state, after, row_limit)
-- Jobs of the queue, the oldest first. One that was given up has the status failed.
SELECT
    id, entrypoint AS kind, :state::text AS state,
    floor(extract(EPOCH FROM created))::bigint AS "createdAt",
    floor(extract(EPOCH FROM execute_after))::bigint AS "dueAt"
FROM pgqueuer
WHERE
    id > :after
    AND status = CASE :state WHEN 'parked' THEN 'failed' WHEN 'waiting' THEN 'queued' ELSE 'picked' END::pgqueuer_status
ORDER BY id
LIMIT :row_limit;

-- name: retry_job(job_id)$
-- A parked job waits again. Its failed tries are no longer counted: see count_tries.
UPDATE pgqueuer
SET status = 'queued', execute_after = now(), updated = now(), attempts = 0
WHERE id = :job_id AND status = 'failed'
RETURNING id;
