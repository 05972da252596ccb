-- Statements of operators and background tasks: the only ones that read across instances.
-- A purge chooses a limited number of rows without a lock, as Citus cannot lock rows of several instances. A row that may
-- change is compared again when it is deleted. If two purges choose the same rows, the second waits and finds them deleted.

-- name: check_writable()$
-- Whether the database accepts writes.
SELECT NOT pg_is_in_recovery() AND current_setting('transaction_read_only') = 'off' AS writable;

-- name: write_heartbeat()$
-- A write that shows that others will succeed.
INSERT INTO heartbeats (id) VALUES (1)
ON CONFLICT (id) DO UPDATE SET written_at = now()
RETURNING true AS written;

-- name: try_for_room()!
-- Takes a megabyte of disk until the commit; an error if the disk is full. An UPDATE does not show that: it finds
-- room in its page, and WAL files are allocated in advance.
CREATE TEMPORARY TABLE room ON COMMIT DROP AS
SELECT repeat('x', 1000) AS filler FROM generate_series(1, 1000);

-- name: find_batch_end(after_instance, after_user, batch_size)^
-- The last user of the next batch by primary key, and the size of the batch; no row after the last one.
SELECT instance_id, id AS user_id, count(*) OVER () AS users
FROM (
    SELECT instance_id, id FROM users
    WHERE (instance_id, id) > (:after_instance, :after_user)
    ORDER BY instance_id, id LIMIT :batch_size
) AS batch
ORDER BY instance_id DESC, id DESC LIMIT 1;

-- name: find_incomplete_users(after_instance, after_user, last_instance, last_user, mailboxes, calendars, folders)
-- Users of one batch without a mailbox, calendar or folder of these roles, and the roles that they have. The schema
-- makes roles unique and valid, so a count finds the gaps.
SELECT
    u.instance_id, i.name AS instance, u.id AS user_id, u.email,
    array(SELECT m.role FROM mailboxes AS m WHERE m.instance_id = u.instance_id AND m.user_id = u.id ORDER BY m.id) AS mailboxes,
    array(SELECT c.role FROM calendars AS c WHERE c.instance_id = u.instance_id AND c.user_id = u.id ORDER BY c.id) AS calendars,
    array(SELECT f.role FROM file_folders AS f WHERE f.instance_id = u.instance_id AND f.user_id = u.id ORDER BY f.id) AS folders
FROM users AS u
INNER JOIN instances AS i ON u.instance_id = i.id
WHERE
    (u.instance_id, u.id) > (:after_instance, :after_user)
    AND (u.instance_id, u.id) <= (:last_instance, :last_user)
    AND (
        (SELECT count(*) FROM mailboxes AS m WHERE m.instance_id = u.instance_id AND m.user_id = u.id)
        < cardinality(:mailboxes::text[])
        OR (SELECT count(*) FROM calendars AS c WHERE c.instance_id = u.instance_id AND c.user_id = u.id)
        < cardinality(:calendars::text[])
        OR (SELECT count(*) FROM file_folders AS f WHERE f.instance_id = u.instance_id AND f.user_id = u.id)
        < cardinality(:folders::text[])
    )
ORDER BY u.instance_id, u.id;

-- name: count_users()$
-- Users of all instances, deleted ones included.
SELECT count(*) AS users FROM users;

-- name: repair_user(instance_id, user_id, mailboxes, calendars, folders)!
-- Adds missing mailboxes, calendars and folders of a user, by role.
WITH counter AS (
    UPDATE instance_counters
    SET
        mailboxes = mailboxes + cardinality(:mailboxes::text[]),
        calendars = calendars + cardinality(:calendars::text[]),
        file_folders = file_folders + cardinality(:folders::text[])
    WHERE instance_id = :instance_id
    RETURNING
        mailboxes - cardinality(:mailboxes::text[]) AS mailboxes,
        calendars - cardinality(:calendars::text[]) AS calendars,
        file_folders - cardinality(:folders::text[]) AS file_folders
),

new_mailboxes AS (
    INSERT INTO mailboxes (instance_id, id, user_id, role)
    SELECT :instance_id, counter.mailboxes + lacking.place, :user_id, lacking.role
    FROM counter
    CROSS JOIN unnest(:mailboxes::text[]) WITH ORDINALITY AS lacking (role, place)
),

new_calendars AS (
    INSERT INTO calendars (instance_id, id, user_id, role)
    SELECT :instance_id, counter.calendars + lacking.place, :user_id, lacking.role
    FROM counter
    CROSS JOIN unnest(:calendars::text[]) WITH ORDINALITY AS lacking (role, place)
)

INSERT INTO file_folders (instance_id, id, user_id, role)
SELECT :instance_id, counter.file_folders + lacking.place, :user_id, lacking.role
FROM counter
CROSS JOIN unnest(:folders::text[]) WITH ORDINALITY AS lacking (role, place);

-- name: find_retained_instances(default_days)
-- Instances that have users past their retention.
SELECT c.instance_id
FROM instance_counters AS c
INNER JOIN instances AS i ON c.instance_id = i.id
WHERE EXISTS (
    SELECT FROM users AS u
    WHERE
        u.instance_id = c.instance_id
        AND u.deleted_at < now() - make_interval(
            days => coalesce((i.settings ->> 'retentionDays')::integer, :default_days)
        )
);

-- name: hold_retained_users(instance_id, default_days, row_limit)
-- Users of an instance past their retention, locked for purge_users. Users locked by others are skipped.
SELECT u.id AS user_id, u.email, u.login, u.display_name, u.external_id, now() AS moment
FROM users AS u
WHERE
    u.instance_id = :instance_id
    AND u.deleted_at < now() - make_interval(
        days => coalesce(
            (SELECT (i.settings ->> 'retentionDays')::integer FROM instances AS i WHERE i.id = :instance_id),
            :default_days
        )
    )
ORDER BY u.deleted_at LIMIT :row_limit
FOR UPDATE SKIP LOCKED;

-- name: purge_expired_sessions(row_limit)
-- Deletes expired sessions.
WITH due AS MATERIALIZED (
    SELECT instance_id, id FROM sessions
    WHERE expires_at < now()
    ORDER BY expires_at LIMIT :row_limit
)

DELETE FROM sessions
WHERE (instance_id, id) IN (SELECT instance_id, id FROM due)
RETURNING id;

-- name: end_expired_plans(row_limit)
-- Ends users' plans whose last day (UTC) is past.
WITH due AS MATERIALIZED (
    SELECT instance_id, id FROM user_plans
    WHERE ended_at IS NULL AND valid_to < (now() AT TIME ZONE 'UTC')::date
    ORDER BY valid_to LIMIT :row_limit
)

UPDATE user_plans
SET ended_at = now()
FROM due
WHERE
    user_plans.instance_id = due.instance_id AND user_plans.id = due.id AND user_plans.ended_at IS NULL
    AND user_plans.valid_to < (now() AT TIME ZONE 'UTC')::date
RETURNING
    user_plans.instance_id, user_plans.user_id, user_plans.plan_id, user_plans.name, user_plans.valid_from,
    user_plans.valid_to;

-- name: purge_expired_codes(row_limit)
-- Deletes expired codes.
WITH due AS MATERIALIZED (
    SELECT instance_id, digest FROM codes
    WHERE expires_at < now()
    ORDER BY expires_at LIMIT :row_limit
)

DELETE FROM codes
WHERE (instance_id, digest) IN (SELECT instance_id, digest FROM due)
RETURNING digest;

-- name: purge_old_answers(row_limit)
-- Deletes idempotency keys and their answers after 24 hours.
WITH due AS MATERIALIZED (
    SELECT instance_id, key_id, name, created_at FROM idempotency_keys
    WHERE created_at <= now() - interval '24 hours'
    ORDER BY created_at LIMIT :row_limit
)

DELETE FROM idempotency_keys
WHERE (instance_id, key_id, name, created_at) IN (SELECT instance_id, key_id, name, created_at FROM due)
RETURNING name;

-- name: purge_login_failures(row_limit)
-- Deletes forgiven login failures.
WITH due AS MATERIALIZED (
    SELECT instance_id, subject, forgiven_at FROM login_failures
    WHERE forgiven_at < now() AND delayed_until < now()
    ORDER BY forgiven_at LIMIT :row_limit
)

DELETE FROM login_failures
WHERE (instance_id, subject, forgiven_at) IN (SELECT instance_id, subject, forgiven_at FROM due)
RETURNING subject;

-- name: purge_old_documents(row_limit)
-- Deletes documents after a week.
WITH due AS MATERIALIZED (
    SELECT instance_id, id FROM documents
    WHERE created_at < now() - interval '7 days'
    ORDER BY created_at LIMIT :row_limit
)

DELETE FROM documents
WHERE (instance_id, id) IN (SELECT instance_id, id FROM due)
RETURNING id;

-- name: purge_parked_jobs(row_limit)
-- Deletes jobs that were parked for thirty days.
WITH due AS MATERIALIZED (
    SELECT instance_id, id FROM jobs
    WHERE state = 'parked' AND due_at < now() - interval '30 days'
    LIMIT :row_limit
    FOR UPDATE SKIP LOCKED
)

DELETE FROM jobs
USING due
WHERE jobs.instance_id = due.instance_id AND jobs.id = due.id
RETURNING jobs.id;

-- name: purge_old_events(row_limit)
-- Deletes events after their retention, by a function of the owner of the tables: the application's role may lack
-- the permission.
SELECT id FROM purge_old_events(:row_limit) AS id;

-- name: purge_old_deliveries(row_limit)
-- Deletes deliveries after thirty full days (UTC): finished ones, and pending ones whose webhook or instance is off
-- or deleted.
WITH due AS MATERIALIZED (
    SELECT d.instance_id, d.webhook_id, d.event_id, d.state
    FROM deliveries AS d
    INNER JOIN webhooks AS w ON d.instance_id = w.instance_id AND d.webhook_id = w.id
    INNER JOIN instances AS i ON d.instance_id = i.id
    WHERE
        (d.created_at AT TIME ZONE 'UTC')::date < (now() AT TIME ZONE 'UTC')::date - 30
        AND (d.state <> 'pending' OR NOT w.is_active OR NOT i.is_active OR i.deleted_at IS NOT NULL)
    ORDER BY (d.created_at AT TIME ZONE 'UTC')::date LIMIT :row_limit
)

DELETE FROM deliveries
WHERE (instance_id, webhook_id, event_id, state) IN (SELECT instance_id, webhook_id, event_id, state FROM due)
RETURNING event_id;

-- name: purge_deleted_webhooks_deliveries(row_limit)
-- Deletes deliveries of deleted webhooks. A range instead of = makes the planner read the first rows in the order of
-- the index deliveries_log, instead of all rows of the webhook.
WITH due AS MATERIALIZED (
    SELECT left_behind.instance_id, left_behind.webhook_id, left_behind.event_id
    FROM webhooks AS w
    CROSS JOIN LATERAL (
        SELECT d.instance_id, d.webhook_id, d.event_id FROM deliveries AS d
        WHERE d.instance_id = w.instance_id AND d.webhook_id >= w.id AND d.webhook_id <= w.id
        ORDER BY d.webhook_id, d.state, d.created_at LIMIT :row_limit
    ) AS left_behind
    WHERE w.deleted_at IS NOT NULL
    LIMIT :row_limit
)

DELETE FROM deliveries
WHERE (instance_id, webhook_id, event_id) IN (SELECT instance_id, webhook_id, event_id FROM due)
RETURNING event_id;

-- name: purge_deleted_webhooks(row_limit)
-- Deletes deleted webhooks that have no deliveries left. None are added: only active webhooks get new ones.
WITH due AS MATERIALIZED (
    SELECT w.instance_id, w.id FROM webhooks AS w
    WHERE
        w.deleted_at IS NOT NULL
        AND NOT EXISTS (SELECT FROM deliveries AS d WHERE d.instance_id = w.instance_id AND d.webhook_id = w.id)
    LIMIT :row_limit
)

DELETE FROM webhooks
WHERE (instance_id, id) IN (SELECT instance_id, id FROM due)
RETURNING id;

-- name: forget_old_secrets(row_limit)
-- Deletes old secrets of webhooks after their overlap.
WITH due AS MATERIALIZED (
    SELECT instance_id, id, old_secret_until FROM webhooks
    WHERE old_secret_until < now()
    LIMIT :row_limit
)

UPDATE webhooks
SET old_secret = NULL, old_secret_until = NULL
WHERE (instance_id, id, old_secret_until) IN (SELECT instance_id, id, old_secret_until FROM due)
RETURNING id;

-- name: find_waiting_webhooks()
-- Webhooks with unread events; webhooks of an instance at the same position follow each other. ready: the events can
-- be read now, without waiting for an older transaction. horizon: as from find_feed_end. age: seconds since the
-- first unread event.
WITH feed AS MATERIALIZED (
    SELECT event_horizon() AS horizon
)

SELECT
    w.instance_id, w.id, unread.xid < feed.horizon AS ready, feed.horizon::text AS horizon,
    extract(EPOCH FROM now() - unread.created_at)::float8 AS age
FROM webhooks AS w
INNER JOIN instances AS i ON w.instance_id = i.id
CROSS JOIN LATERAL (
    SELECT e.xid, e.created_at FROM events AS e
    WHERE e.instance_id = w.instance_id AND (e.xid, e.place) > (w.read_xid, w.read_place)
    ORDER BY e.xid, e.place LIMIT 1
) AS unread
CROSS JOIN feed
WHERE w.is_active AND i.is_active AND i.deleted_at IS NULL
ORDER BY w.instance_id, w.read_xid, w.read_place;

-- name: find_feed_halt()^
-- The oldest running transaction of this database that has written. event_horizon() is its number: events of later
-- transactions cannot be read before it ends. age: seconds since its start, null if this role may not see it
-- (pg_read_all_stats).
SELECT
    holding.pid, coalesce(holding.application_name, '') AS application,
    extract(EPOCH FROM now() - holding.began)::float8 AS age
FROM (
    SELECT a.pid, a.application_name, a.xact_start AS began, l.transactionid
    FROM pg_locks AS l
    INNER JOIN pg_stat_activity AS a ON l.pid = a.pid
    WHERE
        l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted AND a.datname = current_database()
        AND a.pid <> pg_backend_pid()
    UNION ALL
    SELECT 0, 'prepared transaction ' || p.gid, p.prepared, p.transaction
    FROM pg_prepared_xacts AS p
    WHERE p.database = current_database()
) AS holding
ORDER BY age(holding.transactionid) DESC LIMIT 1;

-- name: find_server_facts()^
-- What officerpc doctor compares with the settings. seconds: the database's clock.
SELECT
    current_setting('server_version') AS version, current_setting('server_version_num')::integer / 10000 AS major,
    current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer AS connections,
    extract(EPOCH FROM now())::float8 AS seconds;

-- name: count_parked_jobs()$
SELECT count(*) AS parked FROM jobs
WHERE state = 'parked';

-- name: find_tables_without_statistics()
-- Tables with rows that were never analyzed: the planner takes them for empty.
SELECT s.relname AS name, s.n_live_tup AS live_rows FROM pg_stat_user_tables AS s
WHERE s.last_analyze IS NULL AND s.last_autoanalyze IS NULL AND s.n_live_tup > 1000
ORDER BY s.n_live_tup DESC;

-- name: list_jobs(state, after, row_limit)
-- Jobs of the queue, the oldest first.
SELECT
    id, kind, state,
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM due_at))::bigint AS "dueAt"
FROM jobs
WHERE id > :after AND state = :state
ORDER BY id LIMIT :row_limit;

-- name: retry_job(job_id)$
-- Puts a parked job back into the queue and starts its number of tries again.
UPDATE jobs
SET state = 'waiting', due_at = now(), first_attempt = attempts
WHERE id = :job_id AND state = 'parked'
RETURNING id;

-- name: adopt_old_jobs()$
SELECT adopt_old_jobs();

-- name: find_due_jobs(after_instance, after_lane, looks)
-- The next (instance, kind) pairs with jobs that wait or run, whether one is due, and for how many seconds. Skips
-- from pair to pair in the index, as find_due_webhooks.
WITH RECURSIVE lanes AS (
    (
        SELECT j.instance_id, j.kind, j.due_at, 1 AS step FROM jobs AS j
        WHERE j.state <> 'parked' AND (j.instance_id, j.kind) > (:after_instance::bigint, :after_lane::text)
        ORDER BY j.instance_id, j.kind, j.due_at LIMIT 1
    )
    UNION ALL
    SELECT next.instance_id, next.kind, next.due_at, lanes.step + 1
    FROM lanes
    CROSS JOIN LATERAL (
        SELECT j.instance_id, j.kind, j.due_at FROM jobs AS j
        WHERE j.state <> 'parked' AND (j.instance_id, j.kind) > (lanes.instance_id, lanes.kind)
        ORDER BY j.instance_id, j.kind, j.due_at LIMIT 1
    ) AS next
    WHERE lanes.step < :looks::integer
)

SELECT instance_id, kind, due_at <= now() AS is_due, extract(EPOCH FROM now() - due_at)::float8 AS age
FROM lanes
ORDER BY instance_id, kind;

-- name: claim_jobs(lease, instance_ids, lanes, shares)
-- Claims due jobs for lease seconds: of each instance and kind up to its share, the longest due first. Arrays as in
-- claim_deliveries.
WITH taken AS MATERIALIZED (
    SELECT next.instance_id, next.id
    FROM unnest(:instance_ids::bigint[], :lanes::text[], :shares::integer[]) AS asked (instance_id, kind, share)
    CROSS JOIN LATERAL (
        SELECT j.instance_id, j.id FROM jobs AS j
        WHERE
            j.instance_id = asked.instance_id AND j.kind = asked.kind AND j.state <> 'parked' AND j.due_at <= now()
        ORDER BY j.due_at LIMIT asked.share
        FOR UPDATE SKIP LOCKED
    ) AS next
),

listed AS (
    SELECT array_agg(taken.instance_id) AS instance_ids, array_agg(taken.id) AS ids
    FROM taken
)

UPDATE jobs
SET state = 'running', attempts = jobs.attempts + 1, due_at = now() + make_interval(secs => :lease)
FROM listed
CROSS JOIN unnest(listed.instance_ids, listed.ids) AS one (instance_id, id)
WHERE jobs.instance_id = one.instance_id AND jobs.id = one.id
RETURNING jobs.instance_id, jobs.id, jobs.kind, jobs.payload, jobs.attempts, jobs.first_attempt;

-- name: find_due_webhooks(after_instance, after_lane, looks)
-- The next webhooks with pending deliveries by key, whether one is due that may be sent, and for how many seconds
-- (age). A loose index scan: it skips from webhook to webhook in the index deliveries_due, in at most `looks` steps.
WITH RECURSIVE waiting AS (
    (
        SELECT d.instance_id, d.webhook_id, d.due_at, 1 AS step FROM deliveries AS d
        WHERE d.state = 'pending' AND (d.instance_id, d.webhook_id) > (:after_instance::bigint, :after_lane::bigint)
        ORDER BY d.instance_id, d.webhook_id, d.due_at LIMIT 1
    )
    UNION ALL
    SELECT next.instance_id, next.webhook_id, next.due_at, waiting.step + 1
    FROM waiting
    CROSS JOIN LATERAL (
        SELECT d.instance_id, d.webhook_id, d.due_at FROM deliveries AS d
        WHERE d.state = 'pending' AND (d.instance_id, d.webhook_id) > (waiting.instance_id, waiting.webhook_id)
        ORDER BY d.instance_id, d.webhook_id, d.due_at LIMIT 1
    ) AS next
    WHERE waiting.step < :looks::integer
)

SELECT
    waiting.instance_id, waiting.webhook_id, waiting.due_at,
    waiting.due_at <= now() AND coalesce(w.is_active, false) AND coalesce(i.is_active AND i.deleted_at IS NULL, false)
    AS is_due,
    extract(EPOCH FROM now() - waiting.due_at)::float8 AS age
FROM waiting
LEFT JOIN webhooks AS w ON waiting.instance_id = w.instance_id AND waiting.webhook_id = w.id
LEFT JOIN instances AS i ON waiting.instance_id = i.id
ORDER BY waiting.instance_id, waiting.webhook_id;

-- name: claim_deliveries(lease, instance_ids, lanes, shares)
-- Claims due deliveries for lease seconds: of each of these webhooks up to its share, the longest due first. The
-- commit does not wait for the disk: a claim that a crash undoes is made again. Arrays tell the planner that there
-- are few rows: for a LIMIT that it does not know it assumes a tenth of the table, and would scan it all.
WITH asked AS (
    SELECT one.instance_id, one.webhook_id, one.share
    FROM set_config('synchronous_commit', 'off', true)
    CROSS JOIN unnest(:instance_ids::bigint[], :lanes::bigint[], :shares::integer[])
    AS one (instance_id, webhook_id, share)
),

taken AS MATERIALIZED (
    SELECT
        next.instance_id, next.webhook_id, next.event_id, w.url, w.secret, i.name AS instance,
        CASE WHEN w.old_secret_until > now() THEN w.old_secret END AS old_secret
    FROM asked
    INNER JOIN webhooks AS w ON asked.instance_id = w.instance_id AND asked.webhook_id = w.id
    INNER JOIN instances AS i ON w.instance_id = i.id
    CROSS JOIN LATERAL (
        SELECT d.instance_id, d.webhook_id, d.event_id FROM deliveries AS d
        WHERE
            d.instance_id = asked.instance_id AND d.webhook_id = asked.webhook_id AND d.state = 'pending'
            AND d.due_at <= now()
        ORDER BY d.due_at LIMIT asked.share
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS next
    WHERE w.is_active AND i.is_active AND i.deleted_at IS NULL
),

listed AS (
    SELECT
        array_agg(taken.instance_id) AS instance_ids, array_agg(taken.webhook_id) AS webhook_ids,
        array_agg(taken.event_id) AS event_ids, array_agg(taken.url) AS urls, array_agg(taken.secret) AS secrets,
        array_agg(taken.old_secret) AS old_secrets, array_agg(taken.instance) AS instances
    FROM taken
)

UPDATE deliveries
SET attempts = deliveries.attempts + 1, due_at = now() + make_interval(secs => :lease)
FROM listed
CROSS JOIN unnest(
    listed.instance_ids, listed.webhook_ids, listed.event_ids, listed.urls, listed.secrets, listed.old_secrets,
    listed.instances
) AS taken (instance_id, webhook_id, event_id, url, secret, old_secret, instance)
WHERE
    deliveries.instance_id = taken.instance_id AND deliveries.webhook_id = taken.webhook_id
    AND deliveries.event_id = taken.event_id
RETURNING
    'webhook' AS kind, deliveries.instance_id, deliveries.webhook_id, deliveries.event_id, deliveries.attempts,
    deliveries.first_attempt, deliveries.body, taken.url, taken.secret, taken.old_secret, taken.instance,
    floor(extract(EPOCH FROM now()))::bigint AS moment;

-- name: mend_event_clock()$
-- After a dump was restored into another cluster: moves the event clock past the newest event of any instance or of
-- none (0). It runs at every start, and reads one index entry for each instance. In the original cluster no visible
-- event has a number beyond the newest transaction, so nothing changes there, also during concurrent writes.
UPDATE event_clock
SET ahead = ahead + latest.gap
FROM (
    SELECT
        max(newest.xid::text::bigint) - pg_snapshot_xmax(pg_current_snapshot())::text::bigint
        - (SELECT clock.ahead FROM event_clock AS clock) + 1000000 AS gap
    FROM (
        SELECT last.xid
        FROM instance_counters AS c
        CROSS JOIN LATERAL (
            SELECT e.xid FROM events AS e
            WHERE e.instance_id = c.instance_id
            ORDER BY e.xid DESC, e.place DESC LIMIT 1
        ) AS last
        UNION ALL
        (
            SELECT e.xid FROM events AS e
            WHERE e.instance_id = 0
            ORDER BY e.xid DESC, e.place DESC LIMIT 1
        )
    ) AS newest
) AS latest
WHERE latest.gap >= 1000000
RETURNING ahead;

-- name: find_grown_table(others)^
-- One of our tables, except `others`, that is ten times as large as at its last ANALYZE, or was never analyzed. Its
-- size in pages is known at once; its rows are counted too, within seconds of their commit, because an ANALYZE
-- during the transaction that fills a table sees pages without rows. Below eight pages any plan is fast.
SELECT c.oid::regclass::text AS name
FROM pg_class AS c
CROSS JOIN LATERAL (
    SELECT
        pg_relation_size(c.oid) / current_setting('block_size')::bigint AS pages,
        pg_stat_get_live_tuples(c.oid) AS rows
) AS now
WHERE
    c.relkind = 'r'
    AND c.relnamespace = (SELECT users.relnamespace FROM pg_class AS users WHERE users.oid = 'users'::regclass)
    AND c.relowner = (SELECT f.proowner FROM pg_proc AS f WHERE f.oid = 'analyze_table'::regproc)
    AND c.relname <> all(:others::text[])
    AND (
        (now.pages >= 8 AND (c.relpages < 8 OR now.pages >= 10 * c.relpages))
        OR now.rows >= 10 * greatest(c.reltuples, 100)
    )
LIMIT 1;

-- name: analyze_table(name)!
-- New statistics for a table; all sessions then make its plans again.
SELECT analyze_table(:name::text::regclass);
