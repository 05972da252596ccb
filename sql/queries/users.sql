-- name: create_user(instance_id, email, email_key, display_name, is_active, is_admin, profile, app_values, settings, apps, avatar, fields, language, is_confirmed, external_id, sessions_limit, is_plan_admin, only_sees_readable, mail_quota, files_quota, password_hash, event, method, key_id, key_name, request_id, address, origin)^
-- The user with everything it is given: credential, six mailboxes, main calendar, two file folders; and its event, where
-- that is not left to the others of its transaction. No row where the e-mail is another user's login, or where somebody
-- wrote logins while this waited for the counters: their number is then another than this statement saw at its start.
WITH counter AS (
    UPDATE instance_counters
    SET
        users = users + 1,
        living_users = living_users + 1,
        mailboxes = mailboxes + 6,
        calendars = calendars + 1,
        file_folders = file_folders + 2
    WHERE
        instance_id = :instance_id
        AND logins = (SELECT seen.logins FROM instance_counters AS seen WHERE seen.instance_id = :instance_id)
        AND NOT EXISTS (SELECT FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = :email_key)
    RETURNING users AS user_id, mailboxes, calendars, file_folders
),

new_user AS (
    INSERT INTO users (
        instance_id, id, email, email_key, display_name, is_active, is_admin,
        profile, app_values, settings, apps, avatar, fields, language, external_id, sessions_limit, is_plan_admin,
        only_sees_readable, mail_quota, files_quota, confirmed_at, suspended_at
    )
    SELECT
        :instance_id, user_id, :email, :email_key, :display_name, :is_active, :is_admin,
        :profile, :app_values, :settings, :apps, :avatar, :fields, :language, :external_id, :sessions_limit,
        :is_plan_admin, :only_sees_readable, :mail_quota, :files_quota,
        CASE WHEN :is_confirmed::boolean THEN now() END, CASE WHEN NOT :is_active::boolean THEN now() END
    FROM counter
    RETURNING *
),

new_credential AS (
    INSERT INTO credentials (instance_id, user_id, password_hash)
    SELECT :instance_id, user_id, :password_hash::text
    FROM counter
    WHERE :password_hash::text IS NOT NULL
),

new_mailboxes AS (
    INSERT INTO mailboxes (instance_id, id, user_id, role)
    SELECT :instance_id, mailboxes - 6 + place, user_id, role
    FROM counter
    CROSS JOIN (
        VALUES (1, 'inbox'), (2, 'spam'), (3, 'sent'), (4, 'trash'), (5, 'archive'), (6, 'drafts')
    ) AS roles (place, role)
),

new_calendar AS (
    INSERT INTO calendars (instance_id, id, user_id, role)
    SELECT :instance_id, calendars, user_id, 'main'
    FROM counter
),

new_folders AS (
    INSERT INTO file_folders (instance_id, id, user_id, role)
    SELECT :instance_id, file_folders - 2 + place, user_id, role
    FROM counter
    CROSS JOIN (VALUES (1, 'root'), (2, 'trash')) AS roles (place, role)
),

new_event AS (
    INSERT INTO events (
        instance_id, place, type, user_id, after, method, key_id, key_name, request_id, address, origin
    )
    SELECT
        :instance_id, 1, 'user.created', user_id, :event, :method, :key_id, :key_name, :request_id, :address, :origin
    FROM counter
    WHERE :event::jsonb IS NOT NULL
)

SELECT
    new_user.email,
    new_user.display_name AS "displayName",
    new_user.profile,
    new_user.is_admin AS "isAdmin",
    new_user.apps::text AS apps,
    floor(extract(EPOCH FROM new_user.created_at))::bigint AS "createdAt",
    new_user.settings::text AS settings,
    new_user.app_values AS "values",
    new_user.id,
    counter.calendars AS "mainCalendar",
    counter.mailboxes - 5 AS inbox,
    counter.mailboxes - 4 AS spam,
    counter.mailboxes - 3 AS sent,
    counter.mailboxes - 2 AS "trashEmail",
    counter.mailboxes AS drafts,
    counter.file_folders - 1 AS "rootFiles",
    counter.file_folders AS "trashFiles"
FROM new_user
CROSS JOIN counter;

-- name: find_email(instance_id, email_key)$
-- Whether an address is taken in the instance, by a deleted user too.
SELECT deleted_at IS NOT NULL AS is_deleted
FROM users
WHERE instance_id = :instance_id AND email_key = :email_key;

-- name: update_user(instance_id, email_key, given, display_name, is_active, is_admin, profile, app_values, settings, apps, avatar, external_id, sessions_limit, is_plan_admin, only_sees_readable, mail_quota, files_quota)^
-- Null leaves a column as it is, but for an id, a limit and a quota, which are as told where given names them; profile
-- and values are merged. One with another avatar loses its stored picture, unless that is what the other address leads
-- to.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.email_key = :email_key AND u.deleted_at IS NULL
    FOR NO KEY UPDATE
),

changed AS (
    UPDATE users
    SET
        display_name = coalesce(:display_name, display_name),
        is_active = coalesce(:is_active, is_active),
        suspended_at = CASE WHEN NOT coalesce(:is_active, is_active) THEN coalesce(suspended_at, now()) END,
        is_admin = coalesce(:is_admin, is_admin),
        profile = profile || coalesce(:profile, '{}'::jsonb),
        app_values = app_values || coalesce(:app_values, '{}'::jsonb),
        settings = coalesce(:settings, settings),
        apps = coalesce(:apps, apps),
        avatar = coalesce(:avatar, avatar),
        external_id = CASE WHEN 'externalId' = any(:given::text[]) THEN :external_id ELSE external_id END,
        sessions_limit = CASE WHEN 'sessionsLimit' = any(:given::text[]) THEN :sessions_limit ELSE sessions_limit END,
        is_plan_admin = coalesce(:is_plan_admin, is_plan_admin),
        only_sees_readable = coalesce(:only_sees_readable, only_sees_readable),
        mail_quota = CASE WHEN 'mail' = any(:given::text[]) THEN :mail_quota ELSE mail_quota END,
        files_quota = CASE WHEN 'files' = any(:given::text[]) THEN :files_quota ELSE files_quota END,
        updated_at = now()
    FROM held
    WHERE users.instance_id = :instance_id AND users.id = held.id
    RETURNING users.id, held.before, user_state(users) AS after
),

replaced AS (
    DELETE FROM pictures
    USING changed
    WHERE
        pictures.instance_id = :instance_id AND pictures.user_id = changed.id
        AND :avatar NOT LIKE '%' || pictures.name || '%'
)

SELECT id, before, after
FROM changed;

-- name: set_password(instance_id, email_key, password_hash)^
-- A new password. Sessions and codes end by a statement after it: this one does not see those that it waited for.
WITH target AS (
    SELECT id, is_admin
    FROM users
    WHERE instance_id = :instance_id AND email_key = :email_key AND deleted_at IS NULL
    FOR NO KEY UPDATE
),

stored AS (
    INSERT INTO credentials (instance_id, user_id, password_hash)
    SELECT :instance_id, id, :password_hash
    FROM target
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET password_hash = excluded.password_hash, changed_at = now()
)

SELECT
    id, is_admin,
    EXISTS (
        SELECT FROM credentials AS c
        WHERE c.instance_id = :instance_id AND c.user_id = target.id
    ) AS had_password
FROM target;

-- name: find_user(instance_id, email_key)^
-- Whether there is such a living user, and what validateReplacement compares with.
SELECT id, is_admin, email, fields
FROM users
WHERE instance_id = :instance_id AND email_key = :email_key AND deleted_at IS NULL;

-- name: replace_user(instance_id, user_id, names, is_admin, password_hash)^
-- Several changes at once of a user who is held; null leaves what is there. names are profile fields, {} for none.
WITH held AS (
    SELECT u.id, user_state(u) AS before
    FROM users AS u
    WHERE u.instance_id = :instance_id AND u.id = :user_id
),

changed AS (
    UPDATE users
    SET
        fields = jsonb_strip_nulls(fields || :names::jsonb),
        display_name = CASE
            WHEN :names::jsonb = '{}' THEN display_name
            ELSE left(
                coalesce(
                    nullif(
                        btrim(
                            coalesce((fields || :names::jsonb) ->> 'firstname', '') || ' '
                            || coalesce((fields || :names::jsonb) ->> 'lastname', '')
                        ),
                        ''
                    ),
                    display_name
                ),
                200
            )
        END,
        is_admin = coalesce(:is_admin, is_admin),
        updated_at = now()
    FROM held
    WHERE users.instance_id = :instance_id AND users.id = held.id
    RETURNING users.id, held.before, user_state(users) AS after
),

stored AS (
    INSERT INTO credentials (instance_id, user_id, password_hash)
    SELECT :instance_id, id, :password_hash::text
    FROM changed
    WHERE :password_hash::text IS NOT NULL
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET password_hash = excluded.password_hash, changed_at = now()
)

SELECT
    id, before, after,
    EXISTS (
        SELECT FROM credentials AS c
        WHERE c.instance_id = :instance_id AND c.user_id = changed.id
    ) AS had_password
FROM changed;

-- name: delete_user(instance_id, email_key)^
-- Soft: the user is hidden; purging takes the rows. Its sessions end as those of set_password do.
WITH gone AS (
    UPDATE users
    SET deleted_at = now(), updated_at = now()
    WHERE instance_id = :instance_id AND email_key = :email_key AND deleted_at IS NULL
    RETURNING id, user_state(users) AS state
),

counted AS (
    UPDATE instance_counters
    SET living_users = living_users - 1
    WHERE instance_id = :instance_id AND EXISTS (SELECT FROM gone)
)

SELECT id, state
FROM gone;

-- name: restore_user(instance_id, key)^
-- Undoes delete_user while the rows are there. The key is an e-mail's or a login's.
WITH back AS (
    UPDATE users
    SET deleted_at = NULL, updated_at = now()
    WHERE
        instance_id = :instance_id AND deleted_at IS NOT NULL
        AND id = coalesce(
            (SELECT l.user_id FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = :key),
            (SELECT named.id FROM users AS named WHERE named.instance_id = :instance_id AND named.email_key = :key)
        )
    RETURNING id, user_state(users) AS state
),

counted AS (
    UPDATE instance_counters
    SET living_users = living_users + 1
    WHERE instance_id = :instance_id AND EXISTS (SELECT FROM back)
),

reopened AS (
    UPDATE accounts
    SET deleted_at = NULL
    FROM back
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = back.id
)

SELECT id, state
FROM back;

-- name: purge_user(instance_id, key)^
-- Takes a deleted user with all that was provisioned for it, for good. Its account keeps its place for
-- those beneath it, without a name. The key is an e-mail's or a login's.
WITH target AS (
    SELECT id
    FROM users
    WHERE
        instance_id = :instance_id AND deleted_at IS NOT NULL
        AND id = coalesce(
            (SELECT l.user_id FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = :key),
            (SELECT named.id FROM users AS named WHERE named.instance_id = :instance_id AND named.email_key = :key)
        )
    FOR UPDATE
),

left_behind AS (
    UPDATE accounts
    SET user_id = NULL, title = '', deleted_at = coalesce(accounts.deleted_at, now())
    FROM target
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = target.id
)

DELETE FROM users
USING target
WHERE users.instance_id = :instance_id AND users.id = target.id
RETURNING users.id, user_state(users) AS state;
