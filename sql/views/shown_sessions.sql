-- Valid sessions of users who are not deleted, as lists show them.
SELECT
    s.id, s.user_id AS "userId", u.email, u.email_key, u.external_id AS "externalId",
    floor(extract(EPOCH FROM s.created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM s.expires_at))::bigint AS "expiresAt"
FROM sessions AS s
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = s.user_id
WHERE s.instance_id = :instance_id AND s.expires_at > now() AND u.deleted_at IS NULL;
