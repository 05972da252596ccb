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
