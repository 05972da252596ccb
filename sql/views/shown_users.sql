-- Users of an instance with everything that answers show, under the member names of the wires. All look-ups and lists read
-- this. Unused columns cost nothing: Postgres drops their subqueries and joins.
SELECT
    u.id, u.uuid::text AS uuid, u.email, u.email_key, u.login, u.external_id AS "externalId",
    u.display_name AS "displayName", u.full_name AS "fullName", u.is_active AS "isActive", u.is_admin AS "isAdmin",
    u.confirmed_at IS NOT NULL AS "isConfirmed", u.is_plan_admin AS "isPlanAdmin",
    u.only_sees_readable AS "onlySeesReadable", u.sessions_limit AS "sessionsLimit", u.language, u.avatar, u.profile,
    u.app_values AS "values", u.settings, u.apps, u.attributes - 'emailKeys' AS attributes, u.created_at, u.updated_at,
    u.deleted_at,
    jsonb_build_object('mail', u.mail_quota, 'files', u.files_quota) AS quotas,
    floor(extract(EPOCH FROM u.created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM u.updated_at))::bigint AS "updatedAt",
    floor(extract(EPOCH FROM u.suspended_at))::bigint AS "suspendedAt",
    floor(extract(EPOCH FROM u.deleted_at))::bigint AS "deletedAt",
    CASE WHEN u.is_admin THEN '{Admins}'::text[] ELSE '{}' END || array(
        SELECT g.name
        FROM group_members AS gm
        INNER JOIN groups AS g ON g.instance_id = :instance_id AND g.id = gm.group_id
        WHERE gm.instance_id = :instance_id AND gm.user_id = u.id
        ORDER BY g.name_key
    ) AS "groups",
    u.fields - array(
        SELECT alias
        FROM profile_fields
        WHERE instance_id = :instance_id AND removed_at IS NOT NULL
    ) AS fields,
    (
        SELECT jsonb_build_object('id', a.id, 'title', a.title)
        FROM accounts AS a
        WHERE a.instance_id = :instance_id AND a.user_id = u.id AND a.deleted_at IS NULL
    ) AS account,
    m.inbox, m.spam, m.sent, m.trash AS "trashEmail", m.archive, m.drafts, c.main AS "mainCalendar",
    f.root AS "rootFiles", f.trash AS "trashFiles", s.living AS sessions,
    floor(extract(EPOCH FROM s.newest))::bigint AS "lastLoginAt", held.total AS "plansCount", held.plans
FROM users AS u
LEFT JOIN LATERAL (
    SELECT
        max(id) FILTER (WHERE role = 'inbox') AS inbox,
        max(id) FILTER (WHERE role = 'spam') AS spam,
        max(id) FILTER (WHERE role = 'sent') AS sent,
        max(id) FILTER (WHERE role = 'trash') AS trash,
        max(id) FILTER (WHERE role = 'archive') AS archive,
        max(id) FILTER (WHERE role = 'drafts') AS drafts
    FROM mailboxes
    WHERE instance_id = :instance_id AND user_id = u.id
) AS m ON true
LEFT JOIN LATERAL (
    SELECT max(id) FILTER (WHERE role = 'main') AS main
    FROM calendars
    WHERE instance_id = :instance_id AND user_id = u.id
) AS c ON true
LEFT JOIN LATERAL (
    SELECT
        max(id) FILTER (WHERE role = 'root') AS root,
        max(id) FILTER (WHERE role = 'trash') AS trash
    FROM file_folders
    WHERE instance_id = :instance_id AND user_id = u.id
) AS f ON true
LEFT JOIN LATERAL (
    SELECT max(created_at) AS newest, count(*) FILTER (WHERE expires_at > now()) AS living
    FROM sessions
    WHERE instance_id = :instance_id AND user_id = u.id
) AS s ON true
LEFT JOIN LATERAL (
    -- The newest hundred plans.
    SELECT
        coalesce(max(newest.total), 0) AS total,
        coalesce(
            jsonb_agg(
                jsonb_build_object(
                    'id', newest.id, 'planId', newest.plan_id, 'name', newest.name,
                    'validFrom', newest.valid_from, 'validTo', newest.valid_to, 'state', newest.state
                )
                ORDER BY newest.id
            ),
            '[]'::jsonb
        ) AS plans
    FROM (
        SELECT
            up.id, up.plan_id, coalesce(up.name, p.name) AS name, up.valid_from, up.valid_to,
            plan_state(up.valid_from, up.valid_to, up.ended_at) AS state, count(*) OVER () AS total
        FROM user_plans AS up
        INNER JOIN plans AS p ON p.instance_id = :instance_id AND p.id = up.plan_id
        WHERE up.instance_id = :instance_id AND up.user_id = u.id
        ORDER BY up.id DESC
        LIMIT 100
    ) AS newest
) AS held ON true
WHERE u.instance_id = :instance_id;
