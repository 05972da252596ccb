-- name: create_user(instance_id, email, email_key, display_name, is_active, is_admin, profile, app_values, settings, apps, avatar, fields, language, is_confirmed, external_id, sessions_limit, is_plan_admin, only_sees_readable, mail_quota, files_quota, password_hash, event, method, actor_kind, key_id, key_name, request_id, address, origin)^
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
        instance_id, place, type, user_id, after, method, actor_kind, key_id, key_name, request_id, address, origin
    )
    SELECT
        :instance_id, 1, 'user.created', user_id, :event, :method, :actor_kind, :key_id, :key_name, :request_id, :address,
        :origin
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

-- name: get_user(instance_id, instance_name, email_key)^
-- One living user by e-mail, as getUserByEmail shows it.
SELECT
    u.id,
    :instance_name::text AS instance,
    u.email,
    u.avatar,
    CASE WHEN u.is_admin THEN '{Admins}'::text[] ELSE '{}' END || array(
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
FROM users AS u
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
WHERE u.instance_id = :instance_id AND u.email_key = :email_key AND u.deleted_at IS NULL;

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

-- name: list_users(instance_id, after, starts_with, row_limit)
-- A page of living users in the order of their addresses.
SELECT
    id, email, display_name AS "displayName", is_active AS "isActive", is_admin AS "isAdmin",
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM deleted_at))::bigint AS "deletedAt", email_key
FROM users
WHERE
    instance_id = :instance_id AND deleted_at IS NULL
    AND email_key > :after AND email_key >= :starts_with AND email_key < :starts_with || chr(1114111)
ORDER BY email_key
LIMIT :row_limit;

-- name: list_admin_users(instance_id, after, starts_with, row_limit)
-- A page of living administrators (index users_admins).
SELECT
    id, email, display_name AS "displayName", is_active AS "isActive", is_admin AS "isAdmin",
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM deleted_at))::bigint AS "deletedAt", email_key
FROM users
WHERE
    instance_id = :instance_id AND is_admin AND deleted_at IS NULL
    AND email_key > :after AND email_key >= :starts_with AND email_key < :starts_with || chr(1114111)
ORDER BY email_key
LIMIT :row_limit;

-- name: list_suspended_users(instance_id, after, starts_with, row_limit)
-- A page of living users with isActive false (index users_suspended).
SELECT
    id, email, display_name AS "displayName", is_active AS "isActive", is_admin AS "isAdmin",
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM deleted_at))::bigint AS "deletedAt", email_key
FROM users
WHERE
    instance_id = :instance_id AND NOT is_active AND deleted_at IS NULL
    AND email_key > :after AND email_key >= :starts_with AND email_key < :starts_with || chr(1114111)
ORDER BY email_key
LIMIT :row_limit;

-- name: list_deleted_users(instance_id, after, starts_with, row_limit)
-- A page of deleted users that are not purged yet (index users_deleted).
SELECT
    id, email, display_name AS "displayName", is_active AS "isActive", is_admin AS "isAdmin",
    floor(extract(EPOCH FROM created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM deleted_at))::bigint AS "deletedAt", email_key
FROM users
WHERE
    instance_id = :instance_id AND deleted_at IS NOT NULL
    AND email_key > :after AND email_key >= :starts_with AND email_key < :starts_with || chr(1114111)
ORDER BY email_key
LIMIT :row_limit;

-- name: export_users(instance_id, after, row_limit)
-- A page of living users with all that createUser could be given to make them again, for officerpc users export.
-- By their ids, which never change: renamed in between, a user is still in one page and no other. Stored pictures stay
-- behind: their addresses lead here, and last no longer than the user.
SELECT
    email, display_name AS "displayName", is_active AS "isActive", is_admin AS "isAdmin", profile,
    app_values AS "values", settings, apps, CASE WHEN avatar LIKE '/%' THEN '' ELSE avatar END AS avatar,
    external_id AS "externalId", sessions_limit AS "sessionsLimit", is_plan_admin AS "isPlanAdmin",
    only_sees_readable AS "onlySeesReadable",
    jsonb_build_object('mail', mail_quota, 'files', files_quota) AS quotas, id
FROM users
WHERE instance_id = :instance_id AND deleted_at IS NULL AND id > :after
ORDER BY id
LIMIT :row_limit;

-- name: get_whole_user(instance_id, user_id, email_key, external_id)^
-- All of one user, deleted or not, by the one of the three that is not null. An e-mail may be a login too. Of its plans
-- the newest hundred.
SELECT
    u.id, u.uuid::text AS uuid,
    CASE WHEN strpos(u.email, '@') > 0 THEN u.email END AS email,
    coalesce(u.login, u.email) AS login,
    u.external_id AS "externalId", u.display_name AS "displayName", u.full_name AS "fullName",
    u.is_active AS "isActive", u.is_admin AS "isAdmin", u.confirmed_at IS NOT NULL AS "isConfirmed",
    u.deleted_at IS NOT NULL AS "isDeleted",
    floor(extract(EPOCH FROM u.created_at))::bigint AS "createdAt",
    floor(extract(EPOCH FROM u.updated_at))::bigint AS "updatedAt",
    floor(extract(EPOCH FROM u.suspended_at))::bigint AS "suspendedAt",
    floor(extract(EPOCH FROM u.deleted_at))::bigint AS "deletedAt",
    floor(extract(EPOCH FROM s.newest))::bigint AS "lastLoginAt",
    s.living AS sessions, u.sessions_limit AS "sessionsLimit", u.language, u.avatar,
    CASE WHEN u.is_admin THEN '{Admins}'::text [] ELSE '{}' END || array(
        SELECT g.name
        FROM group_members AS gm
        INNER JOIN groups AS g ON g.instance_id = :instance_id AND g.id = gm.group_id
        WHERE gm.instance_id = :instance_id AND gm.user_id = u.id
        ORDER BY g.name_key
    ) AS "groups",
    u.profile, u.app_values AS "values", u.settings, u.apps,
    u.fields - array(
        SELECT alias
        FROM profile_fields
        WHERE instance_id = :instance_id AND removed_at IS NOT NULL
    ) AS fields,
    u.mail_quota, u.files_quota, u.is_plan_admin AS "isPlanAdmin", u.only_sees_readable AS "onlySeesReadable",
    coalesce(
        (
            SELECT
                jsonb_agg(
                    jsonb_build_object(
                        'id', held.id, 'planId', held.plan_id, 'name', held.name, 'validFrom', held.valid_from,
                        'validTo', held.valid_to, 'state', held.state
                    )
                    ORDER BY held.id
                )
            FROM (
                SELECT
                    up.id, up.plan_id, coalesce(up.name, p.name) AS name, up.valid_from, up.valid_to,
                    plan_state(up.valid_from, up.valid_to, up.ended_at) AS state
                FROM user_plans AS up
                INNER JOIN plans AS p ON p.instance_id = :instance_id AND p.id = up.plan_id
                WHERE up.instance_id = :instance_id AND up.user_id = u.id
                ORDER BY up.id DESC
                LIMIT 100
            ) AS held
        ),
        '[]'::jsonb
    ) AS plans,
    (
        SELECT jsonb_build_object('id', a.id, 'title', a.title)
        FROM accounts AS a
        WHERE a.instance_id = :instance_id AND a.user_id = u.id AND a.deleted_at IS NULL
    ) AS account,
    (
        SELECT jsonb_object_agg(m.role, m.id)
        FROM mailboxes AS m
        WHERE m.instance_id = :instance_id AND m.user_id = u.id
    ) AS mailboxes,
    (
        SELECT jsonb_object_agg(c.role, c.id)
        FROM calendars AS c
        WHERE c.instance_id = :instance_id AND c.user_id = u.id
    ) AS calendars,
    (
        SELECT jsonb_object_agg(f.role, f.id)
        FROM file_folders AS f
        WHERE f.instance_id = :instance_id AND f.user_id = u.id
    ) AS folders
FROM users AS u
CROSS JOIN LATERAL (
    SELECT max(created_at) AS newest, count(*) FILTER (WHERE expires_at > now()) AS living
    FROM sessions
    WHERE instance_id = :instance_id AND user_id = u.id
) AS s
WHERE
    u.instance_id = :instance_id
    AND u.id = coalesce(
        :user_id::bigint,
        (SELECT l.user_id FROM logins AS l WHERE l.instance_id = :instance_id AND l.login_key = :email_key),
        (
            SELECT named.id
            FROM users AS named
            WHERE named.instance_id = :instance_id AND named.email_key = :email_key
        ),
        (
            SELECT named.id
            FROM users AS named
            WHERE named.instance_id = :instance_id AND named.external_id = :external_id
        )
    );
