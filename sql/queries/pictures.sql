-- name: insert_picture(instance_id, user_id, name, media_type, small, large)!
-- The picture of a user, who is locked and whose avatar already has its address.
INSERT INTO pictures (instance_id, user_id, name, media_type, small, large)
VALUES (:instance_id, :user_id, :name, :media_type, :small, :large);

-- name: get_picture(instance_id, name, is_small)^
-- One size of a picture by its random name. The picture of a deleted or suspended user or instance stays stored but
-- is not shown.
SELECT p.media_type, CASE WHEN :is_small::boolean THEN p.small ELSE p.large END AS content
FROM pictures AS p
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = p.user_id
INNER JOIN instances AS i ON i.id = :instance_id
WHERE
    p.instance_id = :instance_id AND p.name = :name AND u.is_active AND u.deleted_at IS NULL
    AND i.is_active AND i.deleted_at IS NULL;
