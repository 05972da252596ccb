-- name: find_user(instance_id, email_key)^
-- A living user: what validateReplacement compares with, and the user's own quotas.
SELECT id, is_admin, email, fields, mail_quota, files_quota FROM users
WHERE instance_id = :instance_id AND email_key = :email_key AND deleted_at IS NULL;

-- name: hold_users(instance_id, ids, keys, external_ids)
-- Users, deleted or not, by id, e-mail, login or external id, with every column that can change. Nobody else can change
-- them or log in as them until the transaction ends.
SELECT u.id, u.user_columns, u.confirmed_at, u.suspended_at, u.deleted_at, u.updated_at, now() AS moment
FROM users AS u
WHERE
    u.instance_id = :instance_id
    AND u.id = any(
        array(
            SELECT unnest(:ids::bigint [])
            UNION ALL
            SELECT id FROM users WHERE instance_id = :instance_id AND email_key = any(:keys::text [])
            UNION ALL
            SELECT user_id FROM logins WHERE instance_id = :instance_id AND login_key = any(:keys::text [])
            UNION ALL
            SELECT id FROM users WHERE instance_id = :instance_id AND external_id = any(:external_ids::text [])
        )
    )
ORDER BY u.id
FOR NO KEY UPDATE OF u;

-- name: write_users(instance_id, ids, users)!
-- The columns of users who are held (directory.rows makes the rows). ids: of these rows. Without them the planner takes
-- the rows for a hundred, and reads a table that is not large from its beginning to its end; so too in write_effects.
UPDATE users
SET
    user_columns = given.user_columns,
    confirmed_at = given.confirmed_at,
    suspended_at = given.suspended_at,
    deleted_at = given.deleted_at,
    updated_at = now()
FROM jsonb_to_recordset(:users::jsonb) AS given (
    id bigint, user_columns text, confirmed_at timestamptz, suspended_at timestamptz, deleted_at timestamptz
)
WHERE users.instance_id = :instance_id AND users.id = any(:ids::bigint []) AND users.id = given.id;

-- name: write_effects(instance_id, ids, users, logins, living)
-- What follows in other tables from changes of users who are held: the password, the login, the counters (directory.rows
-- makes the two differences), the account, the stored picture that another avatar replaces, codes and sessions that end.
-- Of each user: how many living sessions ended, and whether a password was replaced.
WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset(:users::jsonb) AS row (
        id bigint, login_key text, avatar text, deleted_at timestamptz, moment timestamptz, password_hash text,
        has_new_login boolean, has_new_avatar boolean, moves_account boolean, ends_sessions boolean, ended_codes text []
    )
),

-- Here and not in hold_users, whose snapshot is older than its locks. MATERIALIZED: Citus reads it before it writes.
known AS MATERIALIZED (
    SELECT c.user_id
    FROM credentials AS c
    INNER JOIN given ON c.user_id = given.id
    WHERE c.instance_id = :instance_id AND c.user_id = any(:ids::bigint []) AND given.password_hash IS NOT NULL
),

stored AS (
    INSERT INTO credentials (instance_id, user_id, password_hash, changed_at)
    SELECT :instance_id, id, password_hash, moment FROM given
    WHERE password_hash IS NOT NULL
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET password_hash = excluded.password_hash, changed_at = excluded.changed_at
),

counted AS (
    UPDATE instance_counters
    SET logins = logins + :logins::bigint, living_users = living_users + :living::bigint
    WHERE instance_id = :instance_id AND (:logins::bigint <> 0 OR :living::bigint <> 0)
    RETURNING true
),

-- Locks the counters before codes and sessions, in the same order as suspending or deleting an instance.
in_order AS (
    SELECT count(*) FROM counted
),

removed AS (
    DELETE FROM logins
    USING given
    WHERE
        logins.instance_id = :instance_id AND logins.user_id = any(:ids::bigint []) AND logins.user_id = given.id
        AND given.has_new_login AND given.login_key IS NULL
),

kept AS (
    INSERT INTO logins (instance_id, login_key, user_id)
    SELECT :instance_id, login_key, id FROM given
    WHERE has_new_login AND login_key IS NOT NULL
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET login_key = excluded.login_key
),

moved AS (
    UPDATE accounts
    SET deleted_at = given.deleted_at
    FROM given
    WHERE
        accounts.instance_id = :instance_id AND accounts.user_id = any(:ids::bigint []) AND accounts.user_id = given.id
        AND given.moves_account
),

replaced AS (
    DELETE FROM pictures
    USING given
    WHERE
        pictures.instance_id = :instance_id AND pictures.user_id = any(:ids::bigint []) AND pictures.user_id = given.id
        AND given.has_new_avatar AND given.avatar NOT LIKE '%' || pictures.name || '%'
),

void AS (
    DELETE FROM codes
    USING given CROSS JOIN in_order
    WHERE
        codes.instance_id = :instance_id AND codes.user_id = any(:ids::bigint []) AND codes.user_id = given.id
        AND codes.purpose = any(given.ended_codes)
),

ended AS (
    DELETE FROM sessions
    USING given CROSS JOIN in_order
    WHERE
        sessions.instance_id = :instance_id AND sessions.user_id = any(:ids::bigint []) AND sessions.user_id = given.id
        AND given.ends_sessions
    RETURNING sessions.user_id, sessions.expires_at > given.moment AS lived
)

SELECT
    given.id AS user_id, count(*) FILTER (WHERE ended.lived) AS ended, count(known.user_id) > 0 AS had_password
FROM given
LEFT JOIN known ON given.id = known.user_id
LEFT JOIN ended ON given.id = ended.user_id
GROUP BY given.id
ORDER BY given.id;

-- name: purge_users(instance_id, ids, moment)!
-- Deletes users, who are locked, with all that was provisioned for them. An account keeps its position for the
-- accounts below it, without a name.
WITH left_behind AS (
    UPDATE accounts
    SET user_id = NULL, title = '', deleted_at = coalesce(accounts.deleted_at, :moment::timestamptz)
    FROM unnest(:ids::bigint []) AS given (id)
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = given.id
)

DELETE FROM users
USING unnest(:ids::bigint []) AS given (id)
WHERE users.instance_id = :instance_id AND users.id = given.id;
