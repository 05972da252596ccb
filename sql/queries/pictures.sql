-- name: find_user_id(instance_id, email_key)$
-- A living user's id.
SELECT id
FROM users
WHERE instance_id = :instance_id AND email_key = :email_key AND deleted_at IS NULL;

-- name: set_picture(instance_id, user_id, avatar, name, media_type, small, large)^
-- The picture of a living user, in the place of the one before, and its path as the avatar.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL
    FOR NO KEY UPDATE
),

changed AS (
    UPDATE users
    SET avatar = :avatar, updated_at = now()
    FROM held
    WHERE users.instance_id = :instance_id AND users.id = held.id
    RETURNING users.id, users.avatar, held.before, user_state(users) AS after
),

stored AS (
    INSERT INTO pictures (instance_id, user_id, name, media_type, small, large)
    SELECT :instance_id, id, :name, :media_type, :small, :large
    FROM changed
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET
        name = excluded.name, media_type = excluded.media_type,
        small = excluded.small, large = excluded.large, created_at = now()
)

SELECT id, avatar, before, after
FROM changed;

-- name: remove_picture(instance_id, user_id)^
-- A living user's avatar, with the picture if it was one of ours; the user id, whether or not there was any.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL
    FOR NO KEY UPDATE
),

changed AS (
    UPDATE users
    SET avatar = '', updated_at = now()
    FROM held
    WHERE users.instance_id = :instance_id AND users.id = held.id
    RETURNING users.id, held.before, user_state(users) AS after
),

gone AS (
    DELETE FROM pictures
    USING changed
    WHERE pictures.instance_id = :instance_id AND pictures.user_id = changed.id
)

SELECT id, before, after
FROM changed;

-- name: get_picture(instance_id, name, is_small)^
-- One size of a picture by its random name. That of a deleted or suspended user or instance is kept, unseen, until they
-- are back.
SELECT p.media_type, CASE WHEN :is_small::boolean THEN p.small ELSE p.large END AS content
FROM pictures AS p
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = p.user_id
INNER JOIN instances AS i ON i.id = :instance_id
WHERE
    p.instance_id = :instance_id AND p.name = :name AND u.is_active AND u.deleted_at IS NULL
    AND i.is_active AND i.deleted_at IS NULL;
