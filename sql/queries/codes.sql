-- name: issue_code(instance_id, email_key, purpose, digest, lifetime)^
-- Replaces a user's codes for the purpose by a new one, and returns the recipient. No row if no active user has this
-- e-mail, or if the purpose is confirm and it is confirmed already. lifetime: seconds. User and instance are locked:
-- a later change that takes the right to log in away sees this code and deletes it.
WITH recipient AS (
    SELECT
        u.id, u.email, u.full_name AS name, u.language, coalesce(nullif(i.title, ''), i.name) AS title
    FROM users AS u
    INNER JOIN instances AS i ON i.id = :instance_id
    WHERE
        u.instance_id = :instance_id AND u.email_key = :email_key AND u.is_active AND u.deleted_at IS NULL
        AND strpos(u.email, '@') > 0
        AND i.is_active AND i.deleted_at IS NULL
        AND (:purpose::text <> 'confirm' OR u.confirmed_at IS NULL)
    FOR NO KEY UPDATE OF u
    FOR SHARE OF i
),

replaced AS (
    DELETE FROM codes
    USING recipient
    WHERE
        codes.instance_id = :instance_id AND codes.user_id = recipient.id
        AND codes.purpose = :purpose::text
),

issued AS (
    INSERT INTO codes (instance_id, digest, user_id, purpose, expires_at)
    SELECT :instance_id, :digest, id, :purpose::text, now() + make_interval(secs => :lifetime)
    FROM recipient
)

SELECT email, name, language, title FROM recipient;

-- name: redeem_code(instance_id, digest, purpose)^
-- Deletes a code and returns its user. If several calls redeem it at the same time, one gets the row. The user is
-- locked first: after a suspension, deletion or rename the code is gone.
WITH held AS (
    SELECT u.id
    FROM codes AS c
    INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = c.user_id
    WHERE
        c.instance_id = :instance_id AND c.digest = :digest AND c.purpose = :purpose AND c.expires_at > now()
        AND u.is_active AND u.deleted_at IS NULL
    FOR NO KEY UPDATE OF u
)

DELETE FROM codes
USING held
WHERE
    codes.instance_id = :instance_id AND codes.digest = :digest AND codes.purpose = :purpose
    AND codes.user_id = held.id
RETURNING held.id AS user_id;

-- name: end_codes_of_instance(instance_id)!
-- Deletes all codes of an instance, which is locked by an earlier statement.
DELETE FROM codes
WHERE instance_id = :instance_id;
