-- name: find_user(instance_id, email_key)^
-- Whether there is such a living user, and what validateReplacement compares with.
SELECT id, is_admin, email, fields
FROM users
WHERE instance_id = :instance_id AND email_key = :email_key AND deleted_at IS NULL;

-- name: hold_users(instance_id, ids, keys, external_ids)
-- Users, deleted or not, by id, e-mail, login or external id, with every column that can change. Nobody else can change
-- them or log in as them until the transaction ends.
SELECT
    u.id, u.user_columns, u.confirmed_at, u.suspended_at, u.deleted_at, u.updated_at, now() AS moment,
    (
        SELECT c.user_id
        FROM credentials AS c
        WHERE c.instance_id = :instance_id AND c.user_id = u.id
    ) IS NOT NULL AS has_password
FROM (
    SELECT unnest(:ids::bigint []) AS id
    UNION
    SELECT named.id
    FROM unnest(:keys::text []) AS given (key)
    INNER JOIN users AS named ON named.instance_id = :instance_id AND named.email_key = given.key
    UNION
    SELECT l.user_id
    FROM unnest(:keys::text []) AS given (key)
    INNER JOIN logins AS l ON l.instance_id = :instance_id AND l.login_key = given.key
    UNION
    SELECT named.id
    FROM unnest(:external_ids::text []) AS given (external_id)
    INNER JOIN users AS named ON named.instance_id = :instance_id AND named.external_id = given.external_id
) AS wanted
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = wanted.id
ORDER BY u.id
FOR NO KEY UPDATE OF u;

-- name: write_users(instance_id, users, logins, living)
-- Users who are held, with all that follows from their changes; directory.rows makes the rows and the two differences of
-- counters. A stored picture goes with its avatar, unless the new avatar is the address of that picture. Whose living
-- sessions ended, and how many.
WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset(:users::jsonb) AS row (
        id bigint, user_columns text, login_key text, confirmed_at timestamptz, suspended_at timestamptz,
        deleted_at timestamptz, moment timestamptz, password_hash text, differs boolean, has_new_login boolean,
        has_new_avatar boolean, moves_account boolean, comes_or_goes boolean, ends_sessions boolean, ended_codes text []
    )
),

changed AS (
    UPDATE users
    SET
        user_columns = given.user_columns,
        confirmed_at = given.confirmed_at,
        suspended_at = given.suspended_at,
        deleted_at = given.deleted_at,
        updated_at = now()
    FROM given
    WHERE users.instance_id = :instance_id AND users.id = given.id AND given.differs
),

stored AS (
    INSERT INTO credentials (instance_id, user_id, password_hash, changed_at)
    SELECT :instance_id, id, password_hash, moment
    FROM given
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

-- The counters are held before codes and sessions, as where an instance is suspended or deleted.
in_order AS (
    SELECT count(*) FROM counted
),

removed AS (
    DELETE FROM logins
    USING given
    WHERE
        logins.instance_id = :instance_id AND logins.user_id = given.id
        AND given.has_new_login AND given.login_key IS NULL
),

kept AS (
    INSERT INTO logins (instance_id, login_key, user_id)
    SELECT :instance_id, login_key, id
    FROM given
    WHERE has_new_login AND login_key IS NOT NULL
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET login_key = excluded.login_key
),

moved AS (
    UPDATE accounts
    SET deleted_at = given.deleted_at
    FROM given
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = given.id AND given.moves_account
),

replaced AS (
    DELETE FROM pictures
    USING given
    WHERE
        pictures.instance_id = :instance_id AND pictures.user_id = given.id AND given.has_new_avatar
        AND given.avatar NOT LIKE '%' || pictures.name || '%'
),

void AS (
    DELETE FROM codes
    USING given CROSS JOIN in_order
    WHERE
        codes.instance_id = :instance_id AND codes.user_id = given.id AND codes.purpose = any(given.ended_codes)
),

-- Whose members are seen, and so what is shown of a group, changes with deletion and return.
regrouped AS (
    SELECT g.id
    FROM groups AS g
    WHERE
        g.instance_id = :instance_id
        AND g.id IN (
            SELECT gm.group_id
            FROM given
            INNER JOIN group_members AS gm ON gm.instance_id = :instance_id AND gm.user_id = given.id
            WHERE given.comes_or_goes
        )
    ORDER BY g.id
    FOR NO KEY UPDATE
),

shown_otherwise AS (
    UPDATE groups
    SET updated_at = now()
    FROM regrouped
    WHERE groups.instance_id = :instance_id AND groups.id = regrouped.id
),

ended AS (
    DELETE FROM sessions
    USING given CROSS JOIN in_order
    WHERE sessions.instance_id = :instance_id AND sessions.user_id = given.id AND given.ends_sessions
    RETURNING sessions.user_id, sessions.expires_at > given.moment AS lived
)

SELECT user_id, count(*) AS ended
FROM ended
WHERE lived
GROUP BY user_id
ORDER BY user_id;

-- name: purge_users(instance_id, ids, moment)!
-- Takes users, who are held, for good, with all that was provisioned for them. An account keeps its place for those
-- beneath it, without a name.
WITH left_behind AS (
    UPDATE accounts
    SET user_id = NULL, title = '', deleted_at = coalesce(accounts.deleted_at, :moment::timestamptz)
    FROM unnest(:ids::bigint []) AS given (id)
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = given.id
)

DELETE FROM users
USING unnest(:ids::bigint []) AS given (id)
WHERE users.instance_id = :instance_id AND users.id = given.id;
