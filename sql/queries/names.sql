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
