-- name: issue_code(instance_id, email_key, purpose, digest, lifetime)^
-- A code for a user who may log in (or may once it is confirmed), instead of those it had for the purpose.
-- Who is to get it; no row where there is nobody, no e-mail, or nothing left to confirm. The lifetime is in seconds.
-- User and instance are held, so that whatever takes the right away from now on finds the code to end.
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
-- Whose code it was, once: of several who redeem it together, the row goes to one. The user is held first: one who is
-- suspended, deleted or renamed meanwhile has no code any more.
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
-- Every code of an instance, which has been held by a statement before this one.
DELETE FROM codes
WHERE instance_id = :instance_id;
