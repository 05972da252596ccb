-- name: get_user(instance_id, instance_name, email_key)^
-- One living user by e-mail.
SELECT *
FROM documented_users
WHERE email_key = :email_key;

-- name: read_users(instance_id, instance_name, ids)
-- Living users by their ids.
SELECT shown.*
FROM unnest(:ids::bigint []) AS wanted (id)
INNER JOIN documented_users AS shown ON shown.id = wanted.id;

-- name: get_whole_user(instance_id, user_id, key, external_id)^
-- All of one user, deleted or not.
SELECT *
FROM shown_users
WHERE id = (SELECT id FROM named_user);

-- name: get_member(instance_id, user_id, key, external_id)^
-- A living user as the member platform shows it.
SELECT id, email, login, language, "isActive", "isConfirmed", "fullName", avatar, fields, account
FROM shown_users
WHERE deleted_at IS NULL AND id = (SELECT id FROM named_user);

-- name: read_store_users(instance_id, ids)
-- Living users by their ids as the store shows them.
SELECT
    id, uuid, email, "externalId", "displayName", avatar AS picture, "isAdmin", "isPlanAdmin", "onlySeesReadable",
    "sessionsLimit", "createdAt", "updatedAt", "suspendedAt" AS "deactivatedAt", "plansCount", plans
FROM shown_users
WHERE id = any(:ids::bigint []) AND deleted_at IS NULL
ORDER BY id;

-- name: groups_of(instance_id, user_ids)
-- The names of the groups of users who are held: a statement that waits for them has looked at their groups before it
-- waited.
SELECT shown.id, shown."groups" AS names
FROM unnest(:user_ids::bigint []) AS wanted (id)
INNER JOIN shown_users AS shown ON shown.id = wanted.id;

-- name: export_users(instance_id, after, row_limit)
-- A page of living users with all that createUser could be given to make them again, for officerpc users export.
-- By their ids, which never change: renamed in between, a user is still in one page and no other.
SELECT u.id, u.user_columns
FROM users AS u
WHERE u.instance_id = :instance_id AND u.deleted_at IS NULL AND u.id > :after
ORDER BY u.id
LIMIT :row_limit;

-- name: list_users(instance_id, status, after, starts_with, row_limit)
-- A page of users in the order of their addresses. Each status has an index of its own (users_admins, users_suspended,
-- users_deleted); the parts of the others are not run.
(
    SELECT * FROM listed_users
    WHERE :status::text = 'all' AND deleted_at IS NULL
    ORDER BY email_key LIMIT :row_limit
)
UNION ALL
(
    SELECT * FROM listed_users
    WHERE :status::text = 'admins' AND deleted_at IS NULL AND "isAdmin"
    ORDER BY email_key LIMIT :row_limit
)
UNION ALL
(
    SELECT * FROM listed_users
    WHERE :status::text = 'suspended' AND deleted_at IS NULL AND NOT "isActive"
    ORDER BY email_key LIMIT :row_limit
)
UNION ALL
(
    SELECT * FROM listed_users
    WHERE :status::text = 'deleted' AND deleted_at IS NOT NULL
    ORDER BY email_key LIMIT :row_limit
);

-- name: list_group_members(instance_id, group_id, after, row_limit)
-- A page of living members of a group, of Admins where group_id is null (index users_admin_ids), in the order of their ids.
(
    SELECT id, email, "displayName", "isActive"
    FROM shown_users
    WHERE :group_id::bigint IS NULL AND "isAdmin" AND deleted_at IS NULL AND id > :after
    ORDER BY id LIMIT :row_limit
)
UNION ALL
(
    SELECT shown.id, shown.email, shown."displayName", shown."isActive"
    FROM group_members AS gm
    INNER JOIN shown_users AS shown ON shown.id = gm.user_id AND shown.deleted_at IS NULL
    WHERE
        gm.instance_id = :instance_id AND gm.group_id = :group_id AND gm.user_id > :after AND shown.id > :after
    ORDER BY gm.user_id LIMIT :row_limit
);

-- name: page_store_users(instance_id, query, row_offset, row_limit)^
-- The ids of a page of living users, and how many there are on all pages: those who are not deactivated where query is null
-- (index users_store_active), those who are (users_store_deactivated), or administrators who are not (users_store_admins).
SELECT
    array(
        (
            SELECT id FROM shown_users
            WHERE :query::text IS NULL AND "isActive" AND deleted_at IS NULL
            ORDER BY id OFFSET :row_offset LIMIT :row_limit
        )
        UNION ALL
        (
            SELECT id FROM shown_users
            WHERE :query::text = 'deactivated' AND NOT "isActive" AND deleted_at IS NULL
            ORDER BY id OFFSET :row_offset LIMIT :row_limit
        )
        UNION ALL
        (
            SELECT id FROM shown_users
            WHERE :query::text = 'admins' AND "isAdmin" AND "isActive" AND deleted_at IS NULL
            ORDER BY id OFFSET :row_offset LIMIT :row_limit
        )
    ) AS ids,
    CASE :query::text
        WHEN 'admins' THEN (
            SELECT count(*) FROM shown_users WHERE "isAdmin" AND "isActive" AND deleted_at IS NULL
        )
        WHEN 'deactivated' THEN deactivated.total
        ELSE living_users - deactivated.total
    END AS total
FROM instance_counters
CROSS JOIN (
    SELECT count(*) AS total
    FROM shown_users
    WHERE :query::text IS DISTINCT FROM 'admins' AND NOT "isActive" AND deleted_at IS NULL
) AS deactivated
WHERE instance_id = :instance_id;

-- name: list_sessions(instance_id, email_key, after, row_limit)
-- A page of the sessions of one user, the oldest first.
SELECT id, email, "createdAt", "expiresAt"
FROM shown_sessions
WHERE email_key = :email_key AND id > :after
ORDER BY id
LIMIT :row_limit;

-- name: list_auth_sessions(instance_id, user_id, before, row_limit)
-- A page of the sessions of an instance, or of one user (index sessions_by_user), the newest first.
(
    SELECT id, "userId", email, "externalId", "createdAt", "expiresAt"
    FROM shown_sessions
    WHERE :user_id::bigint IS NULL AND id < :before
    ORDER BY id DESC LIMIT :row_limit
)
UNION ALL
(
    SELECT id, "userId", email, "externalId", "createdAt", "expiresAt"
    FROM shown_sessions
    WHERE "userId" = :user_id AND id < :before
    ORDER BY id DESC LIMIT :row_limit
);
