-- name: hold_counters(instance_id)^
-- Keeps others from creating users in the instance until the transaction ends; how many more it may have, null for any.
SELECT max_users - living_users AS seats
FROM instance_counters
WHERE instance_id = :instance_id
FOR NO KEY UPDATE;

-- name: find_taken(instance_id, email_keys, external_ids)
-- Whoever holds one of these addresses, as e-mail or as login (email_key is then the login), or external ids, deleted or not.
-- Joins instead of any(): a plan from when the table was small would go through the array for each row of it.
SELECT u.id, u.email_key, u.external_id, u.deleted_at IS NOT NULL AS is_deleted
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.email_key = wanted.email_key
UNION
SELECT u.id, l.login_key AS email_key, u.external_id, u.deleted_at IS NOT NULL AS is_deleted
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN logins AS l ON l.instance_id = :instance_id AND l.login_key = wanted.email_key
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = l.user_id
UNION
SELECT u.id, u.email_key, u.external_id, u.deleted_at IS NOT NULL AS is_deleted
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

-- name: hold_users(instance_id, ids)
-- Users, deleted or not, with all that can be changed, kept from others, logins too, until the transaction ends.
SELECT
    u.id, u.email, u.email_key, u.display_name, u.is_active, u.is_admin, u.profile, u.app_values, u.settings, u.apps,
    u.avatar, u.fields, u.external_id, u.sessions_limit, u.is_plan_admin, u.only_sees_readable, u.mail_quota,
    u.files_quota, u.deleted_at IS NOT NULL AS is_deleted, user_state(u) AS state
FROM unnest(:ids::bigint []) AS wanted (id)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = wanted.id
ORDER BY u.id
FOR NO KEY UPDATE OF u;

-- name: write_users(instance_id, users)
-- All that can be changed of users who are held. Who has another avatar loses the stored picture, unless that is what
-- the new address leads to.
WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset(:users::jsonb) AS row (
        id bigint, email text, email_key text, display_name text, is_active boolean, is_admin boolean, profile jsonb,
        app_values jsonb, settings integer [], apps integer [], avatar text, fields jsonb, external_id text,
        sessions_limit integer, is_plan_admin boolean, only_sees_readable boolean, mail_quota bigint,
        files_quota bigint, has_new_avatar boolean
    )
),

changed AS (
    UPDATE users
    SET
        email = given.email,
        email_key = given.email_key,
        display_name = given.display_name,
        is_active = given.is_active,
        suspended_at = CASE WHEN NOT given.is_active THEN coalesce(users.suspended_at, now()) END,
        is_admin = given.is_admin,
        profile = given.profile,
        app_values = given.app_values,
        settings = given.settings,
        apps = given.apps,
        avatar = given.avatar,
        fields = given.fields,
        external_id = given.external_id,
        sessions_limit = given.sessions_limit,
        is_plan_admin = given.is_plan_admin,
        only_sees_readable = given.only_sees_readable,
        mail_quota = given.mail_quota,
        files_quota = given.files_quota,
        updated_at = now()
    FROM given
    WHERE users.instance_id = :instance_id AND users.id = given.id
    RETURNING users.id, user_state(users) AS state
),

replaced AS (
    DELETE FROM pictures
    USING given
    WHERE
        pictures.instance_id = :instance_id AND pictures.user_id = given.id AND given.has_new_avatar
        AND given.avatar NOT LIKE '%' || pictures.name || '%'
)

SELECT id, state
FROM changed;

-- name: delete_users(instance_id, ids)!
-- As delete_user does, of users who are held.
WITH counted AS (
    UPDATE instance_counters
    SET living_users = living_users - cardinality(:ids::bigint [])
    WHERE instance_id = :instance_id
)

UPDATE users
SET deleted_at = now(), updated_at = now()
FROM unnest(:ids::bigint []) AS named (id)
WHERE users.instance_id = :instance_id AND users.id = named.id;

-- name: find_created_by(instance_id, email_keys, request_id)
-- Whose of these addresses were created by one request, for an import that was interrupted.
SELECT u.email_key
FROM unnest(:email_keys::text []) AS wanted (email_key)
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.email_key = wanted.email_key
INNER JOIN events AS e ON e.instance_id = :instance_id AND e.user_id = u.id
WHERE
    e.type = 'user.created' AND e.request_id = :request_id;
