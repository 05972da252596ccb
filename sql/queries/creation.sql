-- name: create_users(instance_id, users, login_count, layout, method, actor_kind, key_id, key_name, request_id, address, origin)^
-- Creates users, each with its credential, its login, the mailboxes, calendars and folders of the layout (their
-- roles), and its event if one is given. Ids follow the order of the users: number counts from 1 - n to 0, and the
-- row has the last ids. login_count: users with a login. No row if an e-mail is the login of another user, or if
-- logins were written while this waited for the counters: the count of logins then differs from the one in this
-- statement's snapshot.
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
    SELECT :instance_id, user_id, password_hash FROM given
    WHERE password_hash IS NOT NULL
),

new_logins AS (
    INSERT INTO logins (instance_id, login_key, user_id)
    SELECT :instance_id, login_key, user_id FROM given
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
-- Those of these plans that exist, locked against removal until the transaction ends, and today's date.
SELECT id, (now() AT TIME ZONE 'UTC')::date AS today FROM plans
WHERE instance_id = :instance_id AND id = any(:plan_ids::bigint [])
FOR KEY SHARE;
