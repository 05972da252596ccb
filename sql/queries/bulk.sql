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

-- name: create_users(instance_id, user_count, users)^
-- As many users as user_count says, each with credential, mailboxes, calendar and file folders as create_user makes them.
-- They are numbered in their order; the row has the last ids before theirs.
WITH given AS MATERIALIZED (
    SELECT *
    FROM ROWS FROM (
        jsonb_to_recordset(:users::jsonb) AS (
            email text, email_key text, display_name text, is_active boolean, is_admin boolean, profile jsonb,
            app_values jsonb, settings integer [], apps integer [], avatar text, fields jsonb, external_id text,
            sessions_limit integer, is_plan_admin boolean, only_sees_readable boolean, mail_quota bigint,
            files_quota bigint, password_hash text
        )
    ) WITH ORDINALITY AS row (
        email, email_key, display_name, is_active, is_admin, profile, app_values, settings, apps, avatar, fields,
        external_id, sessions_limit, is_plan_admin, only_sees_readable, mail_quota, files_quota, password_hash, place
    )
),

counter AS (
    UPDATE instance_counters
    SET
        users = users + :user_count::bigint,
        living_users = living_users + :user_count::bigint,
        mailboxes = mailboxes + 6 * :user_count::bigint,
        calendars = calendars + :user_count::bigint,
        file_folders = file_folders + 2 * :user_count::bigint
    WHERE instance_id = :instance_id
    RETURNING
        users - :user_count::bigint AS users,
        mailboxes - 6 * :user_count::bigint AS mailboxes,
        calendars - :user_count::bigint AS calendars,
        file_folders - 2 * :user_count::bigint AS file_folders
),

new_users AS (
    INSERT INTO users (
        instance_id, id, email, email_key, display_name, is_active, is_admin, profile, app_values, settings, apps,
        avatar, fields, external_id, sessions_limit, is_plan_admin, only_sees_readable, mail_quota, files_quota,
        suspended_at
    )
    SELECT
        :instance_id, counter.users + place, email, email_key, display_name, is_active, is_admin, profile,
        app_values, settings, apps, avatar, fields, external_id, sessions_limit, is_plan_admin, only_sees_readable,
        mail_quota, files_quota, CASE WHEN NOT is_active THEN now() END
    FROM given
    CROSS JOIN counter
),

new_credentials AS (
    INSERT INTO credentials (instance_id, user_id, password_hash)
    SELECT :instance_id, counter.users + place, password_hash
    FROM given
    CROSS JOIN counter
    WHERE password_hash IS NOT NULL
),

new_mailboxes AS (
    INSERT INTO mailboxes (instance_id, id, user_id, role)
    SELECT :instance_id, counter.mailboxes + 6 * (given.place - 1) + roles.place, counter.users + given.place, role
    FROM given
    CROSS JOIN counter
    CROSS JOIN (
        VALUES (1, 'inbox'), (2, 'spam'), (3, 'sent'), (4, 'trash'), (5, 'archive'), (6, 'drafts')
    ) AS roles (place, role)
),

new_calendars AS (
    INSERT INTO calendars (instance_id, id, user_id, role)
    SELECT :instance_id, counter.calendars + place, counter.users + place, 'main'
    FROM given
    CROSS JOIN counter
),

new_folders AS (
    INSERT INTO file_folders (instance_id, id, user_id, role)
    SELECT
        :instance_id, counter.file_folders + 2 * (given.place - 1) + roles.place, counter.users + given.place, role
    FROM given
    CROSS JOIN counter
    CROSS JOIN (VALUES (1, 'root'), (2, 'trash')) AS roles (place, role)
)

SELECT users, mailboxes, calendars, file_folders, floor(extract(EPOCH FROM now()))::bigint AS "createdAt"
FROM counter;

-- name: find_plans(instance_id, plan_ids)
-- Which of these plans there are, kept from being removed until the transaction ends, and the day of today.
SELECT id, (now() AT TIME ZONE 'UTC')::date AS today
FROM plans
WHERE instance_id = :instance_id AND id = any(:plan_ids::bigint [])
FOR KEY SHARE;

-- name: assign_plans(instance_id, user_ids, plan_ids, last_days)
-- A plan each for users who have just been created, as assign_plan gives one.
WITH counter AS (
    UPDATE instance_counters
    SET user_plans = user_plans + cardinality(:user_ids::bigint [])
    WHERE instance_id = :instance_id
    RETURNING
        user_plans - cardinality(:user_ids::bigint []) AS user_plans, (now() AT TIME ZONE 'UTC')::date AS today
)

INSERT INTO user_plans (instance_id, id, user_id, plan_id, valid_from, valid_to)
SELECT
    :instance_id, counter.user_plans + given.place, given.user_id, plans.id, counter.today,
    coalesce(given.last_day, (counter.today + make_interval(months => plans.duration, days => -1))::date)
FROM unnest(:user_ids::bigint [], :plan_ids::bigint [], :last_days::date [])
WITH ORDINALITY AS given (user_id, plan_id, last_day, place)
INNER JOIN plans ON plans.instance_id = :instance_id AND plans.id = given.plan_id
CROSS JOIN counter
RETURNING
    user_id,
    jsonb_build_object('planId', plan_id, 'name', name, 'validFrom', valid_from, 'validTo', valid_to) AS plan;

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
