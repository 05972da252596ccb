-- name: find_due_webhooks(after_instance, after_lane, looks)
-- Reads all webhooks: Citus runs no recursive query across instances.
SELECT
    w.instance_id, w.id AS webhook_id, next.due_at,
    next.due_at <= now() AND w.is_active AND i.is_active AND i.deleted_at IS NULL AS is_due,
    extract(EPOCH FROM now() - next.due_at)::float8 AS age
FROM webhooks AS w
INNER JOIN instances AS i ON w.instance_id = i.id
CROSS JOIN LATERAL (
    SELECT d.due_at
    FROM deliveries AS d
    WHERE d.instance_id = w.instance_id AND d.webhook_id = w.id AND d.state = 'pending'
    ORDER BY d.due_at
    LIMIT 1
) AS next
WHERE (w.instance_id, w.id) > (:after_instance::bigint, :after_lane::bigint)
ORDER BY w.instance_id, w.id
LIMIT :looks::integer;

-- name: claim_deliveries(lease, instance_ids, lanes, shares)
-- Citus has no SKIP LOCKED across instances. It updates several shards one after another: a second worker waits
-- until the first claim is committed. There a LIMIT can depend on parameters and the webhook only.
WITH asked AS MATERIALIZED (
    SELECT
        instance_id, webhook_id, now() AS claimed_at, now() + make_interval(secs => :lease) AS due_at,
        floor(extract(EPOCH FROM now()))::bigint AS moment
    FROM unnest(:instance_ids::bigint[], :lanes::bigint[]) AS one (instance_id, webhook_id)
)

UPDATE deliveries
SET attempts = deliveries.attempts + 1, due_at = taken.due_at
FROM (
    SELECT
        w.instance_id, next.webhook_id, next.event_id, w.url, w.secret, i.name AS instance, asked.claimed_at, asked.due_at,
        asked.moment, CASE WHEN w.old_secret_until > asked.claimed_at THEN w.old_secret END AS old_secret
    FROM asked
    INNER JOIN webhooks AS w ON asked.instance_id = w.instance_id AND asked.webhook_id = w.id
    INNER JOIN instances AS i ON w.instance_id = i.id
    CROSS JOIN LATERAL (
        SELECT d.instance_id, d.webhook_id, d.event_id
        FROM deliveries AS d
        WHERE
            d.instance_id = w.instance_id AND d.webhook_id = w.id AND d.state = 'pending'
            AND d.due_at <= now()
        ORDER BY d.due_at
        LIMIT (
            SELECT one.share
            FROM unnest(:instance_ids::bigint[], :lanes::bigint[], :shares::integer[])
            AS one (instance_id, webhook_id, share)
            WHERE one.instance_id = w.instance_id AND one.webhook_id = w.id
        )
    ) AS next
    WHERE w.is_active AND i.is_active AND i.deleted_at IS NULL
) AS taken
WHERE
    deliveries.instance_id = taken.instance_id AND deliveries.webhook_id = taken.webhook_id
    AND deliveries.event_id = taken.event_id AND deliveries.state = 'pending' AND deliveries.due_at <= taken.claimed_at
RETURNING
    'webhook' AS kind, deliveries.instance_id, deliveries.webhook_id, deliveries.event_id, deliveries.attempts,
    deliveries.first_attempt, deliveries.body, taken.url, taken.secret, taken.old_secret, taken.instance, taken.moment;
