-- name: hold_counters(instance_id)^
-- Keeps others from creating users in the instance until the transaction ends; how many more it may have, null for any.
SELECT max_users - living_users AS seats FROM instance_counters
WHERE instance_id = :instance_id
FOR NO KEY UPDATE;

-- name: find_taken(instance_id, email_keys, external_ids)
-- Whoever holds one of these addresses, as e-mail or as login (email_key is then the login), or external ids, deleted or not.
-- Joins instead of any(): a plan from when the table was small would go through the array for each row of it.
SELECT u.id, u.email_key, u.external_id, u.deleted_at
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.email_key = wanted.email_key
UNION
SELECT u.id, l.login_key AS email_key, u.external_id, u.deleted_at
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN logins AS l ON l.instance_id = :instance_id AND l.login_key = wanted.email_key
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = l.user_id
UNION
SELECT u.id, u.email_key, u.external_id, u.deleted_at
FROM unnest(:external_ids::text []) AS wanted (external_id)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.external_id = wanted.external_id;

-- name: find_created_by(instance_id, email_keys, request_id)
-- Whose of these addresses were created by one request, for an import that was interrupted.
SELECT u.email_key
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.email_key = wanted.email_key
INNER JOIN events AS e ON e.instance_id = :instance_id AND e.user_id = u.id
WHERE
    e.type = 'user.created' AND e.request_id = :request_id;
