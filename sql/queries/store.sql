-- name: find_store_user(instance_id, user_id, email_key, external_id)$
-- The id of a living user by whichever of the three is given; the id goes first, the external id last.
SELECT id
FROM users
WHERE
    instance_id = :instance_id AND deleted_at IS NULL
    AND (id = :user_id OR email_key = :email_key OR external_id = :external_id)
ORDER BY coalesce(id = :user_id, false) DESC, coalesce(email_key = :email_key, false) DESC
LIMIT 1;

-- name: find_external_id(instance_id, external_id)$
-- Whether an external id is taken in the instance, by a deleted user too.
SELECT deleted_at IS NOT NULL AS is_deleted
FROM users
WHERE instance_id = :instance_id AND external_id = :external_id;

-- name: hold_store_user(instance_id, user_id)^
-- Keeps others, logins too, from a living user until the transaction ends.
SELECT is_admin
FROM users
WHERE instance_id = :instance_id AND id = :user_id AND deleted_at IS NULL
FOR NO KEY UPDATE;

-- name: change_store_user(instance_id, user_id, given, external_id, sessions_limit, is_admin, is_plan_admin, only_sees_readable)^
-- Null leaves a flag as it is; of the other two, those are changed that given names.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id
    FOR NO KEY UPDATE
)

UPDATE users
SET
    external_id = CASE WHEN 'externalId' = any(:given::text[]) THEN :external_id ELSE external_id END,
    sessions_limit = CASE WHEN 'sessionsLimit' = any(:given::text[]) THEN :sessions_limit ELSE sessions_limit END,
    is_admin = coalesce(:is_admin, is_admin),
    is_plan_admin = coalesce(:is_plan_admin, is_plan_admin),
    only_sees_readable = coalesce(:only_sees_readable, only_sees_readable),
    updated_at = now()
FROM held
WHERE users.instance_id = :instance_id AND users.id = held.id
RETURNING users.id, held.before, user_state(users) AS after;

-- name: set_user_active(instance_id, user_id, is_active)^
-- Suspends a living user, or undoes that.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL
    FOR NO KEY UPDATE
)

UPDATE users
SET
    is_active = :is_active::boolean,
    suspended_at = CASE WHEN NOT :is_active::boolean THEN coalesce(suspended_at, now()) END,
    updated_at = now()
FROM held
WHERE users.instance_id = :instance_id AND users.id = held.id
RETURNING users.id, held.before, user_state(users) AS after;

-- name: end_access_of(instance_id, user_ids, purposes)
-- Every session of users, who have been held by a statement before this one, and their codes for these purposes. Whose
-- sessions lived, and how many.
WITH void AS (
    DELETE FROM codes
    USING unnest(:user_ids::bigint []) AS held (id)
    WHERE
        codes.instance_id = :instance_id AND codes.user_id = held.id AND codes.purpose = any(:purposes::text [])
),

ended AS (
    DELETE FROM sessions
    USING unnest(:user_ids::bigint []) AS held (id)
    WHERE sessions.instance_id = :instance_id AND sessions.user_id = held.id
    RETURNING sessions.user_id, sessions.expires_at > now() AS lived
)

SELECT user_id, count(*) AS ended
FROM ended
WHERE lived
GROUP BY user_id
ORDER BY user_id;

-- name: end_excess_sessions(instance_id, user_id, sessions_limit)$
-- The living sessions of a user, who has been held, but for the newest so many; how many ended.
WITH ended AS (
    DELETE FROM sessions
    USING (
        SELECT id
        FROM sessions
        WHERE instance_id = :instance_id AND user_id = :user_id AND expires_at > now()
        ORDER BY id DESC
        OFFSET :sessions_limit
    ) AS excess
    WHERE sessions.instance_id = :instance_id AND sessions.id = excess.id
    RETURNING sessions.id
)

SELECT count(*) AS ended
FROM ended;

-- name: end_session_by_id(instance_id, session_id)^
-- A session, if it lived; whose it was.
DELETE FROM sessions
USING users AS u
WHERE
    sessions.instance_id = :instance_id AND sessions.id = :session_id AND sessions.expires_at > now()
    AND u.instance_id = :instance_id AND u.id = sessions.user_id
RETURNING sessions.id, sessions.user_id, u.is_admin;
