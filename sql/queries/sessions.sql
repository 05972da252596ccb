-- name: get_credential(instance_id, user_id, key, external_id)^
-- What a login, by login or e-mail, is checked against; no row if the user may not log in.
SELECT u.id AS user_id, u.email_key, c.password_hash
FROM users AS u
INNER JOIN credentials AS c ON c.instance_id = :instance_id AND c.user_id = u.id
WHERE
    u.instance_id = :instance_id AND u.is_active AND u.confirmed_at IS NOT NULL AND u.deleted_at IS NULL
    AND u.id = (SELECT id FROM named_user);

-- name: create_session(instance_id, user_id, password_hash, new_password_hash, token_digest, lifetime)^
-- Creates a session, if the user still may log in, the verified password is still the stored one and the instance is
-- not suspended. Replaces a hash with old parameters by new_password_hash. lifetime: seconds.
WITH verified AS (
    SELECT c.user_id, u.sessions_limit
    FROM credentials AS c
    INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = c.user_id
    WHERE
        c.instance_id = :instance_id AND c.user_id = :user_id AND c.password_hash = :password_hash
        AND u.is_active AND u.confirmed_at IS NOT NULL AND u.deleted_at IS NULL
    FOR NO KEY UPDATE OF u, c
),

rehashed AS (
    UPDATE credentials
    SET password_hash = :new_password_hash
    FROM verified
    WHERE
        credentials.instance_id = :instance_id AND credentials.user_id = verified.user_id
        AND :new_password_hash::text IS NOT NULL
),

counter AS (
    UPDATE instance_counters
    SET sessions = sessions + 1
    WHERE instance_id = :instance_id AND NOT is_suspended AND EXISTS (SELECT FROM verified)
    RETURNING sessions AS id
),

new_session AS (
    INSERT INTO sessions (instance_id, id, user_id, token_digest, expires_at)
    SELECT
        :instance_id, counter.id, verified.user_id, :token_digest, now() + make_interval(secs => :lifetime)
    FROM verified
    CROSS JOIN counter
    RETURNING id, expires_at
)

SELECT
    new_session.id, floor(extract(EPOCH FROM new_session.expires_at))::bigint AS expires_at,
    verified.sessions_limit
FROM new_session
CROSS JOIN verified;

-- name: find_session(instance_id, token_digest)^
-- A valid session of a user who may log in.
SELECT u.email_key, floor(extract(EPOCH FROM s.expires_at))::bigint AS expires_at
FROM sessions AS s
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = s.user_id
WHERE
    s.instance_id = :instance_id AND s.token_digest = :token_digest AND s.expires_at > now()
    AND u.is_active AND u.confirmed_at IS NOT NULL AND u.deleted_at IS NULL;

-- name: end_session(instance_id, token_digest)^
-- Logs out; returns the session, if it existed.
DELETE FROM sessions
WHERE instance_id = :instance_id AND token_digest = :token_digest
RETURNING id, user_id;

-- name: end_all_sessions(instance_id)$
-- Deletes all sessions of an instance; how many of them were valid.
WITH ended AS (
    DELETE FROM sessions
    WHERE instance_id = :instance_id
    RETURNING expires_at
)

SELECT count(*) FILTER (WHERE expires_at > now()) AS ended FROM ended;
