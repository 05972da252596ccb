-- name: hold_counters(instance_id)^
-- Keeps others from creating users in the instance until the transaction ends; how many more it may have, null for any.
SELECT max_users - living_users AS seats
FROM instance_counters
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


-- name: read_users(instance_id, instance_name, ids)
-- Users by their ids, as get_user shows one.
SELECT
    u.id,
    :instance_name::text AS instance,
    u.email,
    u.avatar,
    CASE WHEN u.is_admin THEN '{Admins}'::text [] ELSE '{}' END || array(
        SELECT g.name
        FROM group_members AS gm
        INNER JOIN groups AS g ON g.instance_id = :instance_id AND g.id = gm.group_id
        WHERE gm.instance_id = :instance_id AND gm.user_id = u.id
        ORDER BY g.name_key
    ) AS "groups",
    u.settings,
    u.apps,
    u.app_values AS "values",
    u.profile,
    u.display_name AS "displayName",
    u.is_active AS "isActive",
    u.is_admin AS "isAdmin",
    false AS "isSysAdmin",
    f.root AS "rootFiles",
    f.trash AS "trashFiles",
    m.inbox,
    m.spam,
    m.sent,
    m.trash AS "trashEmail",
    m.drafts,
    c.main AS "mainCalendar",
    '' AS token,
    0 AS "tokenExpiresAt"
FROM unnest(:ids::bigint []) AS wanted (id)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = wanted.id
CROSS JOIN LATERAL (
    SELECT
        max(id) FILTER (WHERE role = 'inbox') AS inbox,
        max(id) FILTER (WHERE role = 'spam') AS spam,
        max(id) FILTER (WHERE role = 'sent') AS sent,
        max(id) FILTER (WHERE role = 'trash') AS trash,
        max(id) FILTER (WHERE role = 'drafts') AS drafts
    FROM mailboxes
    WHERE instance_id = :instance_id AND user_id = u.id
) AS m
CROSS JOIN LATERAL (
    SELECT max(id) FILTER (WHERE role = 'main') AS main
    FROM calendars
    WHERE instance_id = :instance_id AND user_id = u.id
) AS c
CROSS JOIN LATERAL (
    SELECT
        max(id) FILTER (WHERE role = 'root') AS root,
        max(id) FILTER (WHERE role = 'trash') AS trash
    FROM file_folders
    WHERE instance_id = :instance_id AND user_id = u.id
) AS f
WHERE u.deleted_at IS NULL;

-- name: find_created_by(instance_id, email_keys, request_id)
-- Whose of these addresses were created by one request, for an import that was interrupted.
SELECT u.email_key
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.email_key = wanted.email_key
INNER JOIN events AS e ON e.instance_id = :instance_id AND e.user_id = u.id
WHERE
    e.type = 'user.created' AND e.request_id = :request_id;
