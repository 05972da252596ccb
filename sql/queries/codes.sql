-- name: issue_code(instance_id, email_key, purpose, digest, lifetime)^
-- A code for a user who may log in (or may once it is confirmed), instead of those it had for the purpose.
-- Who is to get it; no row where there is nobody, no e-mail, or nothing left to confirm. The lifetime is in seconds.
WITH recipient AS (
    SELECT id, email, full_name, language
    FROM users
    WHERE
        instance_id = :instance_id AND email_key = :email_key AND is_active AND deleted_at IS NULL
        AND strpos(email, '@') > 0
        AND (:purpose::text <> 'confirm' OR confirmed_at IS NULL)
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

SELECT
    recipient.email, recipient.full_name AS name, recipient.language,
    coalesce(nullif(i.title, ''), i.name) AS title
FROM recipient
INNER JOIN instances AS i ON i.id = :instance_id;

-- name: redeem_code(instance_id, digest, purpose)^
-- Whose code it was, once: of several who redeem it together, the row goes to one.
DELETE FROM codes
USING users AS u
WHERE
    codes.instance_id = :instance_id AND codes.digest = :digest AND codes.purpose = :purpose
    AND codes.expires_at > now()
    AND u.instance_id = :instance_id AND u.id = codes.user_id AND u.deleted_at IS NULL
RETURNING u.id AS user_id, u.email_key;

-- name: confirm_user(instance_id, user_id)^
-- A living user is confirmed, if it was not yet, and needs no code for it any more.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL
    FOR NO KEY UPDATE
),

confirmed AS (
    UPDATE users
    SET confirmed_at = coalesce(confirmed_at, now()), updated_at = now()
    FROM held
    WHERE users.instance_id = :instance_id AND users.id = held.id
    RETURNING users.id, held.before, user_state(users) AS after
),

spent AS (
    DELETE FROM codes
    USING confirmed
    WHERE
        codes.instance_id = :instance_id AND codes.user_id = confirmed.id AND codes.purpose = 'confirm'
)

SELECT id, before, after
FROM confirmed;
