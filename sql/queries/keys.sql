-- name: find_key(digest)^
-- A key that is neither revoked nor expired, with its default instance if that is not deleted. seconds_left: null if
-- it never expires.
SELECT
    k.id, k.name, k.scopes, k.is_operator, k.networks::text[] AS networks, k.rate_per_minute,
    extract(EPOCH FROM k.expires_at - now())::float8 AS seconds_left,
    i.id AS instance_id, i.name AS instance_name, i.is_active AS instance_is_active,
    i.settings AS instance_settings
FROM api_keys AS k
LEFT JOIN instances AS i ON k.default_instance_id = i.id AND i.deleted_at IS NULL
WHERE k.digest = :digest AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now());

-- name: find_key_instance(name, key_id, is_operator)^
-- An instance by name, if the key can access it; an operator's key can access all.
SELECT i.id, i.name, i.is_active, i.settings FROM instances AS i
WHERE
    i.name = :name AND i.deleted_at IS NULL
    AND (
        :is_operator::boolean
        OR EXISTS (
            SELECT FROM api_key_instances AS held
            WHERE held.instance_id = i.id AND held.api_key_id = :key_id
        )
    );

-- name: create_key(name, digest, prefix, scopes, is_operator, instance_names, networks, lifetime, rate_per_minute, maker_id)^
-- A key for the named instances, the first being its default. lifetime: seconds, null for none. The key expires no
-- later than the key that creates it (maker_id).
WITH held AS (
    SELECT i.id, n.place
    FROM unnest(:instance_names::text[]) WITH ORDINALITY AS n (name, place)
    INNER JOIN instances AS i ON n.name = i.name
),

new_key AS (
    INSERT INTO api_keys (
        name, digest, prefix, scopes, is_operator, default_instance_id, networks, expires_at,
        rate_per_minute
    )
    SELECT
        :name, :digest, :prefix, :scopes, :is_operator, held.id, :networks::text[]::cidr[],
        least(now() + make_interval(secs => :lifetime), maker.expires_at), :rate_per_minute
    FROM (VALUES (1)) AS first (place)
    LEFT JOIN held ON first.place = held.place
    LEFT JOIN api_keys AS maker ON maker.id = :maker_id
    RETURNING id, created_at, expires_at
),

linked AS (
    INSERT INTO api_key_instances (api_key_id, instance_id)
    SELECT new_key.id, held.id
    FROM new_key
    CROSS JOIN held
)

SELECT
    id, floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM expires_at))::bigint AS "expiresAt"
FROM new_key;

-- name: list_keys(instance_id, after, row_limit)
-- A page of keys without their secrets.
SELECT
    id, name, prefix, scopes, is_operator AS "isOperator", instances, networks::text[] AS networks,
    rate_per_minute AS "ratePerMinute", floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM expires_at))::bigint AS "expiresAt",
    floor(extract(EPOCH FROM revoked_at))::bigint AS "revokedAt"
FROM managed_keys
WHERE id > :after
ORDER BY id LIMIT :row_limit;

-- name: lock_key(key_id, instance_id)^
-- A valid key that the caller may manage, locked for a change.
SELECT
    k.id, k.name, k.scopes, k.is_operator, k.networks::text[] AS networks, k.rate_per_minute, managed.instances,
    extract(EPOCH FROM k.expires_at - now())::float8 AS seconds_left
FROM api_keys AS k
INNER JOIN managed_keys AS managed ON managed.id = k.id
WHERE k.id = :key_id AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
FOR UPDATE OF k;

-- name: find_only_instance(key_id)^
-- The instance of a key that has exactly one, if it is not deleted.
SELECT i.name
FROM api_key_instances AS held
INNER JOIN instances AS i ON held.instance_id = i.id
WHERE
    held.api_key_id = :key_id AND i.deleted_at IS NULL
    AND NOT EXISTS (
        SELECT FROM api_key_instances AS other
        WHERE other.api_key_id = held.api_key_id AND other.instance_id <> held.instance_id
    );

-- name: expire_key(key_id, overlap)!
-- Lets a rotated key expire after the overlap in seconds, or earlier if it was going to.
UPDATE api_keys
SET expires_at = least(expires_at, now() + make_interval(secs => :overlap))
WHERE id = :key_id;

-- name: change_key(key_id, name, scopes, rate_per_minute)!
-- Changes a key.
UPDATE api_keys
SET name = :name, scopes = :scopes, rate_per_minute = :rate_per_minute
WHERE id = :key_id;

-- name: revoke_key(key_id)!
-- Revokes a key, from now on.
UPDATE api_keys
SET revoked_at = now()
WHERE id = :key_id AND revoked_at IS NULL;

-- name: announce_keys_changed()!
-- Tells all listening workers to drop their cached keys and instances.
SELECT pg_notify('officerpc_keys', '');
