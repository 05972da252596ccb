-- name: get_scim_user(instance_id, user_id)^
-- One user that is not deleted, with the data of its SCIM resource.
SELECT *
FROM scim_users
WHERE id = :user_id;

-- name: hold_scim_user(instance_id, user_id)^
-- Locks one user that is not deleted. Returns the columns of hold_users and the other data of its SCIM resource; these
-- were read before this statement waited for a lock of another transaction.
SELECT
    u.id, u.user_columns, u.confirmed_at, u.suspended_at, u.deleted_at, u.updated_at, now() AS moment,
    (
        SELECT c.user_id
        FROM credentials AS c
        WHERE c.instance_id = :instance_id AND c.user_id = u.id
    ) IS NOT NULL AS has_password,
    shown.created_at, shown.memberships, shown.manager, shown.plans, shown.inbox, shown.spam, shown.sent,
    shown."trashEmail", shown.archive, shown.drafts, shown."mainCalendar", shown."rootFiles", shown."trashFiles"
FROM users AS u
INNER JOIN scim_users AS shown ON shown.id = u.id
WHERE u.instance_id = :instance_id AND u.id = :user_id AND u.deleted_at IS NULL
FOR NO KEY UPDATE OF u;

-- name: count_living(instance_id, user_ids)$
-- How many of these users exist and are not deleted.
SELECT count(*)
FROM users
WHERE instance_id = :instance_id AND id = any(:user_ids::bigint []) AND deleted_at IS NULL;

-- name: get_scim_group(instance_id, group_id, with_members)^
-- One group with the data of its SCIM resource, with or without its members.
SELECT
    id, name, external_id, created_at, updated_at, admins, CASE WHEN :with_members::boolean THEN members END AS members
FROM scim_groups
WHERE id = :group_id;

-- name: hold_group(instance_id, group_id)^
-- Locks a group: until the transaction ends, no other one changes it or its memberships.
SELECT id, name, description, external_id, updated_at
FROM groups
WHERE instance_id = :instance_id AND id = :group_id
FOR NO KEY UPDATE;

-- name: find_members(instance_id, group_id, user_ids)
-- The ids of the members of a group that are not deleted; group_id 0: Admins (index users_admin_ids). user_ids: only
-- these users; null: all.
SELECT u.id
FROM users AS u
WHERE
    :group_id::bigint = 0 AND u.instance_id = :instance_id AND u.is_admin AND u.deleted_at IS NULL
    AND (:user_ids::bigint [] IS NULL OR u.id = any(:user_ids::bigint []))
UNION ALL
SELECT u.id
FROM group_members AS gm
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = gm.user_id AND u.deleted_at IS NULL
WHERE
    gm.instance_id = :instance_id AND gm.group_id = :group_id::bigint
    AND (:user_ids::bigint [] IS NULL OR gm.user_id = any(:user_ids::bigint []));

-- name: write_group(instance_id, group_id, name, name_key, external_id)!
-- Stores the name and externalId of a locked group.
UPDATE groups
SET name = :name, name_key = :name_key, external_id = :external_id, updated_at = now()
WHERE instance_id = :instance_id AND id = :group_id;

-- name: change_members(instance_id, group_id, added, removed)!
-- Adds locked users to a locked group, and removes others.
WITH deleted AS (
    DELETE FROM group_members
    WHERE instance_id = :instance_id AND group_id = :group_id AND user_id = any(:removed::bigint [])
),

inserted AS (
    INSERT INTO group_members (instance_id, user_id, group_id)
    SELECT :instance_id, given.user_id, :group_id
    FROM unnest(:added::bigint []) AS given (user_id)
    ON CONFLICT DO NOTHING
)

UPDATE groups
SET updated_at = now()
WHERE instance_id = :instance_id AND id = :group_id;
