-- name: create_webhook(instance_id, url, description, types, skip_origin, secret, horizon, most)^
-- A webhook for events after the horizon (find_feed_end); no row if the instance has `most` already.
WITH counter AS (
    UPDATE instance_counters
    SET webhooks = webhooks + 1
    WHERE
        instance_id = :instance_id
        AND (SELECT count(*) FROM webhooks AS w WHERE w.instance_id = :instance_id AND w.deleted_at IS NULL) < :most
    RETURNING webhooks AS id
)

INSERT INTO webhooks (instance_id, id, url, description, types, skip_origin, secret, read_xid)
SELECT :instance_id, id, :url, :description, :types, :skip_origin, :secret, :horizon::text::xid8
FROM counter
RETURNING
    id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive",
    disabled_because AS "disabledBecause", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt";

-- name: list_webhooks(instance_id, webhook_id)
-- One webhook of an instance, or all where webhook_id is null, without their secrets.
SELECT
    id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive",
    disabled_because AS "disabledBecause", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt"
FROM webhooks
WHERE instance_id = :instance_id AND deleted_at IS NULL AND (:webhook_id::bigint IS NULL OR id = :webhook_id)
ORDER BY id;

-- name: hold_webhook(instance_id, webhook_id)^
-- One webhook without its secrets, locked until the transaction ends.
SELECT
    id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive",
    disabled_because AS "disabledBecause", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt"
FROM webhooks
WHERE instance_id = :instance_id AND id = :webhook_id AND deleted_at IS NULL
FOR NO KEY UPDATE;

-- name: get_webhook_secrets(instance_id, webhook_id)^
-- The secrets, the address and the time for signing and sending a delivery.
SELECT
    url, secret, CASE WHEN old_secret_until > now() THEN old_secret END AS old_secret,
    floor(extract(EPOCH FROM now()))::bigint AS moment
FROM webhooks
WHERE instance_id = :instance_id AND id = :webhook_id AND deleted_at IS NULL;

-- name: update_webhook(instance_id, webhook_id, url, description, types, skip_origin, is_active)!
-- Everything that can change of a webhook, which is locked.
UPDATE webhooks
SET
    url = :url, description = :description, types = :types, skip_origin = :skip_origin, is_active = :is_active,
    disabled_because = CASE WHEN NOT :is_active::boolean THEN disabled_because END,
    failing_since = CASE WHEN is_active AND :is_active::boolean AND url = :url THEN failing_since END,
    updated_at = now()
WHERE instance_id = :instance_id AND id = :webhook_id;

-- name: rotate_webhook_secret(instance_id, webhook_id, secret, overlap)^
-- Sets a new secret; the old one also signs for overlap seconds.
WITH overlap AS (
    SELECT CASE WHEN :overlap::integer > 0 THEN now() + make_interval(secs => :overlap::integer) END AS ends_at
),

rotated AS (
    UPDATE webhooks
    SET
        old_secret = CASE WHEN :overlap::integer > 0 THEN secret END,
        old_secret_until = overlap.ends_at,
        secret = :secret,
        updated_at = now()
    FROM overlap
    WHERE instance_id = :instance_id AND id = :webhook_id AND deleted_at IS NULL
    RETURNING id, old_secret_until
)

SELECT id, floor(extract(EPOCH FROM old_secret_until))::bigint AS "oldSecretUntil"
FROM rotated;

-- name: delete_webhook(instance_id, webhook_id)!
-- Marks a webhook, which is locked, as deleted and erases its secrets. Upkeep deletes its deliveries and then the
-- row.
UPDATE webhooks
SET
    deleted_at = now(), is_active = false, url = '', secret = '', old_secret = NULL, old_secret_until = NULL,
    updated_at = now()
WHERE instance_id = :instance_id AND id = :webhook_id;

-- name: note_outcomes(instance_ids, webhook_ids, taken, failed)!
-- Stores outcomes of tries by webhook. taken: one of them succeeded; failed: the last one failed. failing_since: the
-- first failure after the last success. Rows are locked in the order of their keys.
WITH told AS MATERIALIZED (
    SELECT *, CASE WHEN failed THEN now() END AS failing_since
    FROM unnest(:instance_ids::bigint[], :webhook_ids::bigint[], :taken::boolean[], :failed::boolean[])
    AS one (instance_id, webhook_id, taken, failed)
    ORDER BY instance_id, webhook_id
)

UPDATE webhooks
SET failing_since = told.failing_since
FROM told
WHERE
    webhooks.instance_id = told.instance_id AND webhooks.id = told.webhook_id
    AND CASE WHEN told.failed THEN told.taken OR webhooks.failing_since IS NULL ELSE webhooks.failing_since IS NOT NULL END;

-- name: disable_webhook(instance_id, webhook_id, because, failing_for)$
-- Switches a webhook off; true if it was on and has failed for failing_for seconds.
UPDATE webhooks
SET is_active = false, disabled_because = :because, updated_at = now()
WHERE
    instance_id = :instance_id AND id = :webhook_id AND is_active
    AND failing_since <= now() - make_interval(secs => :failing_for)
RETURNING true AS disabled;

-- name: take_webhook(instance_id, webhook_id)^
-- Locks an active webhook to make its next deliveries; no row if another worker has locked it.
SELECT w.types, w.skip_origin, w.read_xid::text AS xid, w.read_place AS seq, i.name AS instance
FROM webhooks AS w
INNER JOIN instances AS i ON i.id = :instance_id AND i.is_active AND i.deleted_at IS NULL
WHERE w.instance_id = :instance_id AND w.id = :webhook_id AND w.is_active
FOR NO KEY UPDATE OF w SKIP LOCKED;

-- name: insert_deliveries(instance_id, webhook_id, event_ids, types, bodies)!
-- New deliveries of events, due now.
INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body)
SELECT :instance_id, :webhook_id, made.event_id, made.type, made.body
FROM unnest(:event_ids::uuid[], :types::text[], :bodies::bytea[]) AS made (event_id, type, body)
ON CONFLICT (instance_id, webhook_id, event_id) DO NOTHING;

-- name: advance_webhook(instance_id, webhook_id, xid, seq)!
-- Stores the position up to which a webhook has read.
UPDATE webhooks
SET read_xid = :xid::text::xid8, read_place = :seq
WHERE instance_id = :instance_id AND id = :webhook_id;

-- name: settle_deliveries(instance_ids, webhook_ids, event_ids, attempts, states, due_ins, statuses, errors)!
-- Stores outcomes of tries. If a lease ended and another worker tries again, the first try counts only if it
-- succeeded. A try that began before a redelivery was requested does not count. Rows are locked in the order of
-- their keys. done_at IS NULL instead of state = 'pending': the planner would read the index deliveries_due, with
-- all pending deliveries of the webhook, for each row.
WITH told AS MATERIALIZED (
    SELECT
        *, now() + make_interval(secs => due_in) AS due_at, CASE WHEN state <> 'pending' THEN now() END AS done_at
    FROM unnest(
        :instance_ids::bigint[], :webhook_ids::bigint[], :event_ids::uuid[], :attempts::integer[], :states::text[],
        :due_ins::float8[], :statuses::integer[], :errors::text[]
    ) AS one (instance_id, webhook_id, event_id, attempt, state, due_in, status, error)
    ORDER BY instance_id, webhook_id, event_id
)

UPDATE deliveries
SET state = told.state, due_at = told.due_at, status = told.status, error = told.error, done_at = told.done_at
FROM told
WHERE
    deliveries.instance_id = told.instance_id AND deliveries.webhook_id = told.webhook_id
    AND deliveries.event_id = told.event_id AND deliveries.done_at IS NULL AND told.attempt > deliveries.first_attempt
    AND (deliveries.attempts = told.attempt OR told.state = 'delivered');

-- name: redeliver(instance_id, webhook_id, event_id)$
-- Starts a delivery again, whatever its state is.
UPDATE deliveries
SET
    state = 'pending', first_attempt = attempts, due_at = now(), status = NULL, error = NULL, done_at = NULL
WHERE instance_id = :instance_id AND webhook_id = :webhook_id AND event_id = :event_id
RETURNING true AS again;

-- name: list_deliveries(instance_id, webhook_id, states, before_time, before_event, row_limit)
-- A page of a webhook's deliveries, the newest first: those of each state in states, merged. 'has failed' stands for
-- those whose last try failed (index deliveries_failing).
SELECT
    page.event_id::text AS "eventId", page.type, page.state, page.attempts - page.first_attempt AS attempts, page.status,
    page.error,
    floor(extract(EPOCH FROM page.created_at))::bigint AS "createdAt",
    CASE WHEN page.state = 'pending' THEN floor(extract(EPOCH FROM page.due_at))::bigint END AS "dueAt",
    floor(extract(EPOCH FROM page.done_at))::bigint AS "doneAt",
    page.created_at
FROM unnest(:states::text[]) AS asked (state)
CROSS JOIN LATERAL (
    (
        SELECT
            d.event_id, d.type, d.state, d.attempts, d.first_attempt, d.status, d.error, d.created_at, d.due_at,
            d.done_at
        FROM deliveries AS d
        WHERE
            d.instance_id = :instance_id AND d.webhook_id = :webhook_id AND d.state = asked.state
            AND (d.created_at, d.event_id) < (:before_time, :before_event::uuid)
        ORDER BY d.created_at DESC, d.event_id DESC LIMIT :row_limit
    )
    UNION ALL
    (
        SELECT
            d.event_id, d.type, d.state, d.attempts, d.first_attempt, d.status, d.error, d.created_at, d.due_at,
            d.done_at
        FROM deliveries AS d
        WHERE
            asked.state = 'has failed' AND d.instance_id = :instance_id AND d.webhook_id = :webhook_id
            AND d.error IS NOT NULL AND (d.created_at, d.event_id) < (:before_time, :before_event::uuid)
        ORDER BY d.created_at DESC, d.event_id DESC LIMIT :row_limit
    )
) AS page
ORDER BY page.created_at DESC, page.event_id DESC LIMIT :row_limit;
