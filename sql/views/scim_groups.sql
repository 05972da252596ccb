-- Groups with the data of their SCIM resources (server/directory/scim/groups.py), including Admins (id 0). The version of
-- Admins depends on the changes of its members and on their number, `admins`. A statement that does not select `members`
-- does not read them. Both parts have the same types: only then is a condition on the id pushed down into each part.
SELECT
    g.id, g.name, g.name_key, g.external_id, g.created_at, g.updated_at, NULL::bigint AS admins,
    (
        SELECT jsonb_agg(jsonb_build_object('id', u.id, 'name', u.display_name) ORDER BY u.id)
        FROM group_members AS gm
        INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = gm.user_id
        WHERE gm.instance_id = :instance_id AND gm.group_id = g.id AND u.deleted_at IS NULL
    ) AS members
FROM groups AS g
WHERE g.instance_id = :instance_id
UNION ALL
SELECT
    0::bigint AS id, 'Admins'::text AS name, 'admins'::text COLLATE "C" AS name_key, NULL::text AS external_id, i.created_at,
    greatest(i.created_at, held.newest) AS updated_at, held.total AS admins,
    (
        SELECT jsonb_agg(jsonb_build_object('id', u.id, 'name', u.display_name) ORDER BY u.id)
        FROM users AS u
        WHERE u.instance_id = :instance_id AND u.is_admin AND u.deleted_at IS NULL
    ) AS members
FROM instances AS i
CROSS JOIN LATERAL (
    SELECT max(u.updated_at) AS newest, count(*) AS total
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.is_admin AND u.deleted_at IS NULL
) AS held
WHERE i.id = :instance_id;
