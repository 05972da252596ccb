-- name: create_instance(name, title, settings)^
-- An instance with its counters.
WITH new_instance AS (
    INSERT INTO instances (name, title, settings)
    VALUES (:name, :title, :settings)
    RETURNING id, name, title, is_active, settings, created_at
),

counters AS (
    INSERT INTO instance_counters (instance_id, max_users)
    SELECT id, (settings ->> 'maxUsers')::bigint FROM new_instance
)

SELECT
    id, name, title, is_active, settings, floor(extract(EPOCH FROM created_at))::bigint AS created_at
FROM new_instance;

-- name: get_instance(instance_id)^
-- One instance, with its number of users and its limit.
SELECT
    i.name, i.title, i.is_active AS "isActive", i.settings,
    floor(extract(EPOCH FROM i.created_at))::bigint AS "createdAt",
    c.living_users AS users, c.max_users AS "maxUsers"
FROM instances AS i
INNER JOIN instance_counters AS c ON c.instance_id = :instance_id
WHERE i.id = :instance_id;

-- name: list_instances(after, row_limit)
-- A page of all instances in the order of their names, for the operator.
SELECT
    name, title, is_active AS "isActive", settings,
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt"
FROM instances
WHERE name > :after AND deleted_at IS NULL
ORDER BY name LIMIT :row_limit;

-- name: update_counters(instance_id, is_active, settings)!
-- Copies what instance_counters repeats of its instance.
UPDATE instance_counters
SET
    max_users = CASE
        WHEN :settings::jsonb IS NULL THEN max_users
        ELSE (:settings::jsonb ->> 'maxUsers')::bigint
    END,
    is_suspended = NOT coalesce(:is_active::boolean, NOT is_suspended)
WHERE
    instance_id = :instance_id
    AND (
        (:settings::jsonb IS NOT NULL AND max_users IS DISTINCT FROM (:settings::jsonb ->> 'maxUsers')::bigint)
        OR is_suspended = :is_active::boolean
    );

-- name: update_instance(instance_id, title, is_active, settings)!
-- Null leaves a column unchanged; settings are complete, merged and checked by the method.
UPDATE instances
SET
    title = coalesce(:title, title),
    is_active = coalesce(:is_active::boolean, is_active),
    settings = coalesce(:settings::jsonb, settings)
WHERE id = :instance_id;

-- name: lock_instance(instance_id)^
-- Locks an instance until the transaction ends, so that concurrent merges do not overwrite each other. No row if it
-- is deleted, also if that happened while this waited.
SELECT title, is_active AS "isActive", settings FROM instances
WHERE id = :instance_id AND deleted_at IS NULL
FOR NO KEY UPDATE;

-- name: is_suspended(instance_id)$
-- Whether an instance is suspended; no row if it is deleted.
SELECT NOT is_active AS is_suspended FROM instances
WHERE id = :instance_id AND deleted_at IS NULL;

-- name: find_instance(name)$
-- The id of the instance with a name, to see whether the name is taken.
SELECT id FROM instances
WHERE name = :name;

-- name: delete_instance(instance_id)$
-- Soft delete: all data stays, but no call can reach it. The name becomes free: the stored one gets characters that
-- no valid name has. Logins in progress create no session: see create_session.
WITH deleted AS (
    UPDATE instances
    SET is_active = false, deleted_at = now(), name = '~' || id || '~' || name
    WHERE id = :instance_id AND deleted_at IS NULL
    RETURNING id
),

counters AS (
    UPDATE instance_counters
    SET is_suspended = true
    FROM deleted
    WHERE instance_counters.instance_id = :instance_id
)

SELECT id FROM deleted;

-- name: find_first_start(digest)^
-- For the first start: whether any instance or key exists, and whether this key does, revoked or not.
SELECT
    EXISTS (SELECT FROM instances) AS has_instances, EXISTS (SELECT FROM api_keys) AS has_keys,
    EXISTS (SELECT FROM api_keys WHERE digest = :digest) AS has_key;
