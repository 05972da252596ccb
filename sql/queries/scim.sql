-- name: get_scim_user(instance_id, user_id)^
-- One living user as SCIM shows it.
SELECT *
FROM scim_users
WHERE id = :user_id;

-- name: hold_scim_user(instance_id, user_id)^
-- One living user as hold_users gives it, with what else SCIM shows of it: that is what it was before this waited for
-- whoever held the user.
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
-- How many of these users there are.
SELECT count(*)
FROM users
WHERE instance_id = :instance_id AND id = any(:user_ids::bigint []) AND deleted_at IS NULL;

-- name: get_scim_group(instance_id, group_id, with_members)^
-- One group as SCIM shows it, with or without its members.
SELECT
    id, name, external_id, created_at, updated_at, admins, CASE WHEN :with_members::boolean THEN members END AS members
FROM scim_groups
WHERE id = :group_id;

-- name: hold_group(instance_id, group_id)^
-- A group that nobody else changes, nor who is in it, until the transaction ends.
SELECT id, name, description, external_id, updated_at
FROM groups
WHERE instance_id = :instance_id AND id = :group_id
FOR NO KEY UPDATE;

-- name: find_members(instance_id, group_id, user_ids)
-- The ids of the living members of a group, of Admins where group_id is 0 (index users_admin_ids); only of these users,
-- where user_ids is not null.
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
-- A group that is held.
UPDATE groups
SET name = :name, name_key = :name_key, external_id = :external_id, updated_at = now()
WHERE instance_id = :instance_id AND id = :group_id;

-- name: change_members(instance_id, group_id, added, removed)!
-- Users, who are held, into a group that stays, and out of it.
WITH gone AS (
    DELETE FROM group_members
    WHERE instance_id = :instance_id AND group_id = :group_id AND user_id = any(:removed::bigint [])
),

entered AS (
    INSERT INTO group_members (instance_id, user_id, group_id)
    SELECT :instance_id, given.user_id, :group_id
    FROM unnest(:added::bigint []) AS given (user_id)
    ON CONFLICT DO NOTHING
)

UPDATE groups
SET updated_at = now()
WHERE instance_id = :instance_id AND id = :group_id;
