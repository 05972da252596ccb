-- name: hold_counters(instance_id)^
-- Locks the counters, so that no other transaction creates users in the instance. seats: how many more users it may
-- have, null for any number.
SELECT max_users - living_users AS seats FROM instance_counters
WHERE instance_id = :instance_id
FOR NO KEY UPDATE;

-- name: find_taken(instance_id, email_keys, external_ids)
-- Existing users, deleted or not, with one of these external ids, or with one of these addresses as e-mail or as
-- login (email_key is then the login). Joins instead of any(): a generic plan that was made while the table was
-- small would scan the array for each of its rows.
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
-- The addresses of users that one request created, for an import that was interrupted.
SELECT u.email_key
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.email_key = wanted.email_key
INNER JOIN events AS e ON e.instance_id = :instance_id AND e.user_id = u.id
WHERE
    e.type = 'user.created' AND e.request_id = :request_id;
