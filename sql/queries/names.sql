-- name: find_names(instance_id, keys)
-- Whoever has one of these names, as e-mail or as login, deleted or not.
SELECT u.id AS user_id, wanted.key, u.deleted_at IS NOT NULL AS is_deleted
FROM unnest(:keys::text []) AS wanted (key)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.email_key = wanted.key
UNION
SELECT u.id AS user_id, wanted.key, u.deleted_at IS NOT NULL AS is_deleted
FROM unnest(:keys::text []) AS wanted (key)
INNER JOIN logins AS l ON l.instance_id = :instance_id AND l.login_key = wanted.key
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = l.user_id;

-- name: hold_names(instance_id, user_id, email_key)^
-- The names of a living user, by its id or e-mail, kept from others until the transaction ends.
SELECT id, email, login, is_admin
FROM users
WHERE instance_id = :instance_id AND (id = :user_id OR email_key = :email_key) AND deleted_at IS NULL
FOR UPDATE;

-- name: set_names(instance_id, user_id, email, email_key, login, login_key)^
-- The names of a user who is held, beside held counters. A null login_key: the login is the e-mail, or stands in its
-- place.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id
),

named AS (
    UPDATE users
    SET email = :email, email_key = :email_key, login = :login, updated_at = now()
    FROM held
    WHERE users.instance_id = :instance_id AND users.id = held.id
    RETURNING users.id, held.before, user_state(users) AS after
),

counted AS (
    UPDATE instance_counters
    SET logins = logins + 1
    WHERE instance_id = :instance_id AND :login_key::text IS NOT NULL
),

removed AS (
    DELETE FROM logins
    WHERE instance_id = :instance_id AND user_id = :user_id AND :login_key::text IS NULL
),

kept AS (
    INSERT INTO logins (instance_id, login_key, user_id)
    SELECT :instance_id, :login_key::text, named.id
    FROM named
    WHERE :login_key::text IS NOT NULL
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET login_key = excluded.login_key
)

SELECT id, before, after
FROM named;
