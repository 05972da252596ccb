-- Users that are not deleted, with the data of their SCIM resources (server/directory/scim/users.py).
SELECT
    id, email, email_key, login, "externalId", "displayName", "fullName", fields, profile, "values", language, avatar,
    "isActive", "isAdmin", attributes, quotas, inbox, spam, sent, "trashEmail", archive, drafts, "mainCalendar",
    "rootFiles", "trashFiles", plans, created_at, updated_at,
    (
        SELECT jsonb_agg(jsonb_build_object('id', g.id, 'name', g.name) ORDER BY g.id)
        FROM group_members AS gm
        INNER JOIN groups AS g ON g.instance_id = :instance_id AND g.id = gm.group_id
        WHERE gm.instance_id = :instance_id AND gm.user_id = shown_users.id
    ) AS memberships,
    (
        SELECT manager.display_name
        FROM users AS manager
        WHERE
            manager.instance_id = :instance_id AND manager.id = (shown_users.attributes ->> 'manager')::bigint
            AND manager.deleted_at IS NULL
    ) AS manager
FROM shown_users
WHERE deleted_at IS NULL;
