-- name: create_users(instance_id, users, login_count, layout, method, actor_kind, key_id, key_name, request_id, address, origin)^
-- Users, one or many, each with all that it has from the start: credential, login, what the layout says (the roles of
-- mailboxes, calendars and folders), and its event, where one is given. All of it is numbered in the order of the users,
-- each of whom says its number, counted back from the last one's 0. The row has the last ids. login_count: of the users
-- who have a login.
-- No row where an e-mail is another user's login, or where logins were written while this waited for the counters: their
-- number then differs from the one that this statement saw at its start.
WITH counter AS (
    UPDATE instance_counters
    SET
        users = users + jsonb_array_length(:users::jsonb),
        living_users = living_users + jsonb_array_length(:users::jsonb),
        logins = logins + :login_count,
        mailboxes = mailboxes + jsonb_array_length(:users::jsonb) * jsonb_array_length(:layout::jsonb -> 'mailboxes'),
        calendars = calendars + jsonb_array_length(:users::jsonb) * jsonb_array_length(:layout::jsonb -> 'calendars'),
        file_folders = file_folders + jsonb_array_length(:users::jsonb) * jsonb_array_length(:layout::jsonb -> 'folders')
    WHERE
        instance_id = :instance_id
        AND logins = (SELECT seen.logins FROM instance_counters AS seen WHERE seen.instance_id = :instance_id)
        AND NOT EXISTS (
            SELECT
            FROM jsonb_to_recordset(:users::jsonb) AS wanted (email_key text)
            INNER JOIN logins AS l ON l.instance_id = :instance_id AND l.login_key = wanted.email_key
        )
    RETURNING users, mailboxes, calendars, file_folders AS folders
),

given AS MATERIALIZED (
    SELECT
        counter.users + number AS user_id,
        counter.mailboxes + (number - 1) * jsonb_array_length(:layout::jsonb -> 'mailboxes') AS last_mailbox,
        counter.calendars + (number - 1) * jsonb_array_length(:layout::jsonb -> 'calendars') AS last_calendar,
        counter.folders + (number - 1) * jsonb_array_length(:layout::jsonb -> 'folders') AS last_folder,
        row.*
    FROM counter
    CROSS JOIN jsonb_to_recordset(:users::jsonb) AS row (
        number integer, user_columns text, login_key text, is_confirmed boolean, password_hash text, event jsonb
    )
),

new_users AS (
    INSERT INTO users (instance_id, id, user_columns, confirmed_at, suspended_at)
    SELECT
        :instance_id, user_id, user_columns, CASE WHEN is_confirmed THEN now() END, CASE WHEN NOT is_active THEN now() END
    FROM given
),

new_credentials AS (
    INSERT INTO credentials (instance_id, user_id, password_hash)
    SELECT :instance_id, user_id, password_hash
    FROM given
    WHERE password_hash IS NOT NULL
),

new_logins AS (
    INSERT INTO logins (instance_id, login_key, user_id)
    SELECT :instance_id, login_key, user_id
    FROM given
    WHERE login_key IS NOT NULL
),

new_mailboxes AS (
    INSERT INTO mailboxes (instance_id, id, user_id, role)
    SELECT :instance_id, last_mailbox + place, user_id, role
    FROM given
    CROSS JOIN jsonb_array_elements_text(:layout::jsonb -> 'mailboxes') WITH ORDINALITY AS layout (role, place)
),

new_calendars AS (
    INSERT INTO calendars (instance_id, id, user_id, role)
    SELECT :instance_id, last_calendar + place, user_id, role
    FROM given
    CROSS JOIN jsonb_array_elements_text(:layout::jsonb -> 'calendars') WITH ORDINALITY AS layout (role, place)
),

new_folders AS (
    INSERT INTO file_folders (instance_id, id, user_id, role)
    SELECT :instance_id, last_folder + place, user_id, role
    FROM given
    CROSS JOIN jsonb_array_elements_text(:layout::jsonb -> 'folders') WITH ORDINALITY AS layout (role, place)
),

new_events AS (
    INSERT INTO events (
        instance_id, place, type, user_id, after, method, actor_kind, key_id, key_name, request_id, address, origin
    )
    SELECT
        :instance_id, jsonb_array_length(:users::jsonb) + number, 'user.created', user_id, event, :method, :actor_kind, :key_id, :key_name, :request_id, :address, :origin
    FROM given
    WHERE event IS NOT NULL
)

SELECT users, mailboxes, calendars, folders, floor(extract(EPOCH FROM now()))::bigint AS "createdAt"
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
    RETURNING user_plans - cardinality(:user_ids::bigint []) AS user_plans
),

assigned AS (
    INSERT INTO user_plans (instance_id, id, user_id, plan_id, valid_from, valid_to)
    SELECT
        :instance_id, counter.user_plans + given.place, given.user_id, plans.id, clock.today,
        coalesce(given.last_day, (clock.today + make_interval(months => plans.duration, days => -1))::date)
    FROM unnest(:user_ids::bigint [], :plan_ids::bigint [], :last_days::date [])
    WITH ORDINALITY AS given (user_id, plan_id, last_day, place)
    INNER JOIN plans ON plans.instance_id = :instance_id AND plans.id = given.plan_id
    CROSS JOIN counter
    CROSS JOIN (SELECT (now() AT TIME ZONE 'UTC')::date AS today) AS clock
    RETURNING user_id, plan_id, name, valid_from, valid_to
)

SELECT
    user_id,
    jsonb_build_object('planId', plan_id, 'name', name, 'validFrom', valid_from, 'validTo', valid_to) AS plan
FROM assigned;
