-- name: create_group(instance_id, name, name_key, description, external_id)^
-- A group without members.
WITH counter AS (
    UPDATE instance_counters
    SET groups = groups + 1
    WHERE instance_id = :instance_id
    RETURNING groups AS id
)

INSERT INTO groups (instance_id, id, name, name_key, description, external_id)
SELECT :instance_id, id, :name, :name_key, :description, :external_id FROM counter
RETURNING id, name, description, floor(extract(EPOCH FROM created_at))::bigint AS "createdAt";

-- name: update_group(instance_id, name_key, new_name, new_name_key, description)^
-- Null leaves a column as it is.
WITH held AS (
    SELECT id, name, description FROM groups
    WHERE instance_id = :instance_id AND name_key = :name_key
    FOR UPDATE
),

changed AS (
    UPDATE groups
    SET
        name = coalesce(:new_name, groups.name),
        name_key = coalesce(:new_name_key, groups.name_key),
        description = coalesce(:description, groups.description),
        updated_at = now()
    FROM held
    WHERE groups.instance_id = :instance_id AND groups.id = held.id
    RETURNING held.name AS old_name, held.description AS old_description, groups.name, groups.description
)

SELECT
    jsonb_build_object('name', old_name, 'description', old_description) AS before,
    jsonb_build_object('name', name, 'description', description) AS after
FROM changed;

-- name: delete_group(instance_id, group_id, name_key)^
-- Deletes a group, by its id or else by its name, and by the foreign key its memberships.
DELETE FROM groups
WHERE
    instance_id = :instance_id
    AND id = coalesce(
        :group_id::bigint,
        (SELECT named.id FROM groups AS named WHERE named.instance_id = :instance_id AND named.name_key = :name_key)
    )
RETURNING name, description, external_id, updated_at;

-- name: get_group(instance_id, name_key)$
-- The id of a group.
SELECT id FROM groups
WHERE instance_id = :instance_id AND name_key = :name_key;

-- name: find_groups(instance_id, name_keys)
-- Existing groups by name, locked against deletion until the transaction ends.
SELECT id, name_key FROM groups
WHERE instance_id = :instance_id AND name_key = any(:name_keys::text[])
ORDER BY id
FOR KEY SHARE;

-- name: replace_groups(instance_id, user_ids, member_ids, group_ids, shown_ids)!
-- Makes these (member_ids, group_ids) pairs the only memberships of user_ids. Groups show the members that are not
-- deleted, so that those of shown_ids, who are deleted or restored, change too. The users are locked, and the groups that
-- they enter cannot be deleted.
WITH others AS (
    DELETE FROM group_members AS gm
    USING unnest(:user_ids::bigint[]) AS held (id)
    WHERE
        gm.instance_id = :instance_id AND gm.user_id = held.id
        AND NOT EXISTS (
            SELECT FROM unnest(:member_ids::bigint[], :group_ids::bigint[]) AS wanted (user_id, group_id)
            WHERE wanted.user_id = gm.user_id AND wanted.group_id = gm.group_id
        )
    RETURNING gm.group_id
),

entered AS (
    INSERT INTO group_members (instance_id, user_id, group_id)
    SELECT :instance_id, wanted.user_id, wanted.group_id
    FROM unnest(:member_ids::bigint[], :group_ids::bigint[]) AS wanted (user_id, group_id)
    ON CONFLICT DO NOTHING
    RETURNING group_id
),

-- In the order of their ids, after the counters of the instance, as in every transaction: so there are no deadlocks.
-- Arrays, so that the planner reads these groups only, not all of the instance.
changed AS (
    SELECT g.id
    FROM groups AS g
    WHERE
        g.instance_id = :instance_id
        AND g.id = any(
            array(
                SELECT group_id FROM others
                UNION ALL
                SELECT group_id FROM entered
                UNION ALL
                SELECT group_id FROM group_members
                WHERE instance_id = :instance_id AND user_id = any(:shown_ids::bigint[])
            )
        )
    ORDER BY g.id
    FOR NO KEY UPDATE
)

UPDATE groups
SET updated_at = now()
WHERE groups.instance_id = :instance_id AND groups.id = any(array(SELECT changed.id FROM changed));

-- name: join_group(instance_id, user_id, group_id)!
-- Adds a user to a group, if it is not a member. Both are locked.
WITH entered AS (
    INSERT INTO group_members (instance_id, user_id, group_id)
    VALUES (:instance_id, :user_id, :group_id)
    ON CONFLICT DO NOTHING
    RETURNING group_id
)

UPDATE groups
SET updated_at = now()
FROM entered
WHERE groups.instance_id = :instance_id AND groups.id = entered.group_id;

-- name: leave_group(instance_id, user_id, group_id)!
-- Removes a user, who is locked, from a group.
WITH gone AS (
    DELETE FROM group_members
    WHERE instance_id = :instance_id AND user_id = :user_id AND group_id = :group_id
    RETURNING group_id
)

UPDATE groups
SET updated_at = now()
FROM gone
WHERE groups.instance_id = :instance_id AND groups.id = gone.group_id;

-- name: list_groups(instance_id, after, row_limit)
-- A page of groups by name, Admins among them, with the number of members that are not deleted. Deleted members are
-- few, so they are counted separately and subtracted.
WITH page AS (
    SELECT id, name, name_key, description, created_at FROM groups
    WHERE instance_id = :instance_id AND name_key > :after
    ORDER BY name_key LIMIT :row_limit
)

SELECT
    page.id, page.name, page.description, false AS "isReserved",
    (
        SELECT count(*) FROM group_members
        WHERE instance_id = :instance_id AND group_id = page.id
    ) - (
        SELECT count(*)
        FROM users AS u
        INNER JOIN group_members AS gm
            ON gm.instance_id = :instance_id AND gm.user_id = u.id AND gm.group_id = page.id
        WHERE u.instance_id = :instance_id AND u.deleted_at IS NOT NULL
    ) AS members,
    floor(extract(EPOCH FROM page.created_at))::bigint AS "createdAt", page.name_key
FROM page
UNION ALL
SELECT
    0 AS id, 'Admins' AS name, 'Administrators' AS description, true AS "isReserved",
    (
        SELECT count(*) FROM users
        WHERE instance_id = :instance_id AND is_admin AND deleted_at IS NULL
    ) AS members,
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt", 'admins' AS name_key
FROM instances
WHERE id = :instance_id AND 'admins' COLLATE "C" > :after
ORDER BY name_key LIMIT :row_limit;
