-- name: find_store_user(instance_id, user_id, email_key, external_id)$
-- The id of a living user by whichever of the three is given; the id goes first, the external id last.
SELECT id
FROM users
WHERE
    instance_id = :instance_id AND deleted_at IS NULL
    AND (id = :user_id OR email_key = :email_key OR external_id = :external_id)
ORDER BY coalesce(id = :user_id, false) DESC, coalesce(email_key = :email_key, false) DESC
LIMIT 1;

-- name: read_store_users(instance_id, ids)
-- Living users as the store shows them, with the newest hundred of each one's plans.
SELECT
    u.id, u.uuid::text AS uuid, u.email, u.external_id AS "externalId", u.display_name AS "displayName",
    u.avatar AS picture, u.is_admin AS "isAdmin", u.is_plan_admin AS "isPlanAdmin",
    u.only_sees_readable AS "onlySeesReadable", u.sessions_limit AS "sessionsLimit",
    floor(extract(EPOCH FROM u.created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM u.updated_at))::bigint AS "updatedAt",
    floor(extract(EPOCH FROM u.suspended_at))::bigint AS "deactivatedAt",
    held.total AS "plansCount", held.plans
FROM users AS u
CROSS JOIN LATERAL (
    SELECT
        coalesce(max(newest.total), 0) AS total,
        coalesce(
            jsonb_agg(
                jsonb_build_object(
                    'id', newest.id, 'planId', newest.plan_id, 'name', newest.name,
                    'validFrom', newest.valid_from, 'validTo', newest.valid_to, 'state', newest.state
                )
                ORDER BY newest.id
            ),
            '[]'::jsonb
        ) AS plans
    FROM (
        SELECT
            up.id, up.plan_id, coalesce(up.name, p.name) AS name, up.valid_from, up.valid_to,
            plan_state(up.valid_from, up.valid_to, up.ended_at) AS state,
            count(*) OVER () AS total
        FROM user_plans AS up
        INNER JOIN plans AS p ON p.instance_id = :instance_id AND p.id = up.plan_id
        WHERE up.instance_id = :instance_id AND up.user_id = u.id
        ORDER BY up.id DESC
        LIMIT 100
    ) AS newest
) AS held
WHERE u.instance_id = :instance_id AND u.id = any(:ids::bigint[]) AND u.deleted_at IS NULL
ORDER BY u.id;

-- name: page_active_users(instance_id, row_offset, row_limit)^
-- The ids of a page of living users who are not deactivated (index users_store_active), and how many there are.
SELECT
    array(
        SELECT id
        FROM users
        WHERE instance_id = :instance_id AND is_active AND deleted_at IS NULL
        ORDER BY id
        OFFSET :row_offset
        LIMIT :row_limit
    ) AS ids,
    living_users - (
        SELECT count(*)
        FROM users
        WHERE instance_id = :instance_id AND NOT is_active AND deleted_at IS NULL
    ) AS total
FROM instance_counters
WHERE instance_id = :instance_id;

-- name: page_deactivated_users(instance_id, row_offset, row_limit)^
-- The same of deactivated ones (index users_store_deactivated).
SELECT
    array(
        SELECT id
        FROM users
        WHERE instance_id = :instance_id AND NOT is_active AND deleted_at IS NULL
        ORDER BY id
        OFFSET :row_offset
        LIMIT :row_limit
    ) AS ids,
    (
        SELECT count(*)
        FROM users
        WHERE instance_id = :instance_id AND NOT is_active AND deleted_at IS NULL
    ) AS total;

-- name: page_active_admins(instance_id, row_offset, row_limit)^
-- The same of administrators who are not deactivated (index users_store_admins).
SELECT
    array(
        SELECT id
        FROM users
        WHERE instance_id = :instance_id AND is_admin AND is_active AND deleted_at IS NULL
        ORDER BY id
        OFFSET :row_offset
        LIMIT :row_limit
    ) AS ids,
    (
        SELECT count(*)
        FROM users
        WHERE instance_id = :instance_id AND is_admin AND is_active AND deleted_at IS NULL
    ) AS total;

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

-- name: list_auth_sessions(instance_id, before, row_limit)
-- Living sessions of living users, the newest first.
SELECT
    s.id, s.user_id AS "userId", u.email, u.external_id AS "externalId",
    floor(extract(EPOCH FROM s.created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM s.expires_at))::bigint AS "expiresAt"
FROM sessions AS s
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = s.user_id
WHERE s.instance_id = :instance_id AND s.id < :before AND s.expires_at > now() AND u.deleted_at IS NULL
ORDER BY s.id DESC
LIMIT :row_limit;

-- name: list_auth_sessions_of(instance_id, user_id, before, row_limit)
-- The same of one user (index sessions_by_user).
SELECT
    s.id, s.user_id AS "userId", u.email, u.external_id AS "externalId",
    floor(extract(EPOCH FROM s.created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM s.expires_at))::bigint AS "expiresAt"
FROM sessions AS s
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = s.user_id
WHERE
    s.instance_id = :instance_id AND s.user_id = :user_id AND s.id < :before AND s.expires_at > now()
    AND u.deleted_at IS NULL
ORDER BY s.id DESC
LIMIT :row_limit;
