-- name: create_webhook(instance_id, url, description, types, skip_origin, secret, most)^
-- A webhook for what is to come; no row where the instance has as many as it may.
WITH counter AS (
    UPDATE instance_counters
    SET webhooks = webhooks + 1
    WHERE
        instance_id = :instance_id
        AND (SELECT count(*) FROM webhooks AS w WHERE w.instance_id = :instance_id) < :most
    RETURNING webhooks AS id
)

INSERT INTO webhooks (instance_id, id, url, description, types, skip_origin, secret)
SELECT :instance_id, id, :url, :description, :types, :skip_origin, :secret
FROM counter
RETURNING
    id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive",
    disabled_because AS "disabledBecause", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt";

-- name: list_webhooks(instance_id)
-- Every webhook of an instance, without its secrets.
SELECT
    id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive",
    disabled_because AS "disabledBecause", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt"
FROM webhooks
WHERE instance_id = :instance_id
ORDER BY id;

-- name: get_webhook(instance_id, webhook_id)^
-- One webhook, without its secrets.
SELECT
    id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive",
    disabled_because AS "disabledBecause", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt"
FROM webhooks
WHERE instance_id = :instance_id AND id = :webhook_id;

-- name: hold_webhook(instance_id, webhook_id)^
-- The same, kept from others until the transaction ends.
SELECT
    id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive",
    disabled_because AS "disabledBecause", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt"
FROM webhooks
WHERE instance_id = :instance_id AND id = :webhook_id
FOR NO KEY UPDATE;

-- name: get_webhook_secrets(instance_id, webhook_id)^
-- What a delivery is signed with, and where it goes.
SELECT url, secret, CASE WHEN old_secret_until > now() THEN old_secret END AS old_secret
FROM webhooks
WHERE instance_id = :instance_id AND id = :webhook_id;

-- name: update_webhook(instance_id, webhook_id, url, description, types, skip_origin, is_active)!
-- All that can change of a webhook, which has been held.
UPDATE webhooks
SET
    url = :url, description = :description, types = :types, skip_origin = :skip_origin, is_active = :is_active,
    disabled_because = CASE WHEN NOT :is_active::boolean THEN disabled_because END, updated_at = now()
WHERE instance_id = :instance_id AND id = :webhook_id;

-- name: rotate_webhook_secret(instance_id, webhook_id, secret, overlap)^
-- Another secret; the one before signs beside it for so many seconds.
UPDATE webhooks
SET
    old_secret = CASE WHEN :overlap::integer > 0 THEN secret END,
    old_secret_until = CASE WHEN :overlap::integer > 0 THEN now() + make_interval(secs => :overlap::integer) END,
    secret = :secret,
    updated_at = now()
WHERE instance_id = :instance_id AND id = :webhook_id
RETURNING id, floor(extract(EPOCH FROM old_secret_until))::bigint AS "oldSecretUntil";

-- name: delete_webhook(instance_id, webhook_id)^
-- A webhook with its deliveries, those that wait too.
DELETE FROM webhooks
WHERE instance_id = :instance_id AND id = :webhook_id
RETURNING id, url, description, types, skip_origin AS "skipOrigin", is_active AS "isActive";

-- name: disable_webhook(instance_id, webhook_id, because)$
-- Nothing is sent any more until it is switched on again. True if it was on.
UPDATE webhooks
SET is_active = false, disabled_because = :because, updated_at = now()
WHERE instance_id = :instance_id AND id = :webhook_id AND is_active
RETURNING true AS disabled;

-- name: take_webhook(instance_id, webhook_id)^
-- Where a webhook has read to, held for whoever makes its next deliveries; no row while somebody else does.
SELECT w.types, w.skip_origin, w.read_xid::text AS xid, w.read_place AS place, i.name AS instance
FROM webhooks AS w
INNER JOIN instances AS i ON i.id = :instance_id AND i.deleted_at IS NULL
WHERE w.instance_id = :instance_id AND w.id = :webhook_id AND w.is_active
FOR NO KEY UPDATE OF w SKIP LOCKED;

-- name: insert_deliveries(instance_id, webhook_id, event_ids, types, bodies)!
-- Events to be delivered from now on.
INSERT INTO deliveries (instance_id, webhook_id, event_id, type, body)
SELECT :instance_id, :webhook_id, made.event_id, made.type, made.body
FROM unnest(:event_ids::uuid[], :types::text[], :bodies::bytea[]) AS made (event_id, type, body)
ON CONFLICT (instance_id, webhook_id, event_id) DO NOTHING;

-- name: advance_webhook(instance_id, webhook_id, xid, place)!
-- What has been read is not read again.
UPDATE webhooks
SET read_xid = :xid::text::xid8, read_place = :place
WHERE instance_id = :instance_id AND id = :webhook_id;

-- name: note_delivery(instance_id, webhook_id, event_id, attempt, state, due_in, status, error)!
-- What a try came to. A try that was taken for dead, and is made again by somebody else, counts only if it succeeded.
UPDATE deliveries
SET
    state = :state,
    due_at = now() + make_interval(secs => :due_in),
    status = :status,
    error = :error,
    done_at = CASE WHEN :state <> 'pending' THEN now() END
WHERE
    instance_id = :instance_id AND webhook_id = :webhook_id AND event_id = :event_id
    AND state = 'pending' AND (attempts = :attempt OR :state = 'delivered');

-- name: redeliver(instance_id, webhook_id, event_id)$
-- A delivery from the start, whatever became of it.
UPDATE deliveries
SET state = 'pending', attempts = 0, due_at = now(), status = NULL, error = NULL, done_at = NULL
WHERE instance_id = :instance_id AND webhook_id = :webhook_id AND event_id = :event_id
RETURNING true AS again;

-- name: list_deliveries(instance_id, webhook_id, state, before_time, before_event, row_limit)
-- A page of a webhook's deliveries, the newest first.
SELECT
    event_id::text AS "eventId", type, state, attempts, status, error,
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    CASE WHEN state = 'pending' THEN floor(extract(EPOCH FROM due_at))::bigint END AS "dueAt",
    floor(extract(EPOCH FROM done_at))::bigint AS "doneAt",
    created_at
FROM deliveries
WHERE
    instance_id = :instance_id AND webhook_id = :webhook_id AND (:state::text IS NULL OR state = :state)
    AND (created_at, event_id) < (:before_time, :before_event::uuid)
ORDER BY created_at DESC, event_id DESC
LIMIT :row_limit;
