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

-- name: find_user(instance_id, email_key)^
-- Whether there is such a living user, and what validateReplacement compares with.
SELECT id, is_admin, email, fields
FROM users
WHERE instance_id = :instance_id AND email_key = :email_key AND deleted_at IS NULL;

-- name: hold_users(instance_id, ids, keys, external_ids)
-- Users, deleted or not, by id, e-mail, login or external id, with every column that can change. Nobody else can change
-- them or log in as them until the transaction ends.
SELECT
    u.id, u.email, u.email_key, u.login, u.display_name, u.is_active, u.is_admin, u.profile, u.app_values, u.settings,
    u.apps, u.avatar, u.fields, u.language, u.external_id, u.sessions_limit, u.is_plan_admin, u.only_sees_readable,
    u.mail_quota, u.files_quota, u.confirmed_at, u.suspended_at, u.deleted_at, now() AS moment,
    (
        SELECT c.user_id
        FROM credentials AS c
        WHERE c.instance_id = :instance_id AND c.user_id = u.id
    ) IS NOT NULL AS has_password
FROM (
    SELECT unnest(:ids::bigint []) AS id
    UNION
    SELECT named.id
    FROM unnest(:keys::text []) AS given (key)
    INNER JOIN users AS named ON named.instance_id = :instance_id AND named.email_key = given.key
    UNION
    SELECT l.user_id
    FROM unnest(:keys::text []) AS given (key)
    INNER JOIN logins AS l ON l.instance_id = :instance_id AND l.login_key = given.key
    UNION
    SELECT named.id
    FROM unnest(:external_ids::text []) AS given (external_id)
    INNER JOIN users AS named ON named.instance_id = :instance_id AND named.external_id = given.external_id
) AS wanted
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = wanted.id
ORDER BY u.id
FOR NO KEY UPDATE OF u;

-- name: write_users(instance_id, users, logins, living)
-- Users who are held, with all that follows from their changes; directory.rows makes the rows and the two differences of
-- counters. A stored picture goes with its avatar, unless the new avatar is the address of that picture. Whose living
-- sessions ended, and how many.
WITH given AS MATERIALIZED (
    SELECT *
    FROM jsonb_to_recordset(:users::jsonb) AS row (
        id bigint, email text, email_key text, login text, login_key text, display_name text, is_active boolean,
        is_admin boolean, profile jsonb, app_values jsonb, settings integer [], apps integer [], avatar text,
        fields jsonb, language text, external_id text, sessions_limit integer, is_plan_admin boolean,
        only_sees_readable boolean, mail_quota bigint, files_quota bigint, confirmed_at timestamptz,
        suspended_at timestamptz, deleted_at timestamptz, moment timestamptz, password_hash text, differs boolean,
        has_new_login boolean, has_new_avatar boolean, moves_account boolean, ends_sessions boolean,
        ended_codes text []
    )
),

changed AS (
    UPDATE users
    SET
        email = given.email,
        email_key = given.email_key,
        login = given.login,
        display_name = given.display_name,
        is_active = given.is_active,
        is_admin = given.is_admin,
        profile = given.profile,
        app_values = given.app_values,
        settings = given.settings,
        apps = given.apps,
        avatar = given.avatar,
        fields = given.fields,
        language = given.language,
        external_id = given.external_id,
        sessions_limit = given.sessions_limit,
        is_plan_admin = given.is_plan_admin,
        only_sees_readable = given.only_sees_readable,
        mail_quota = given.mail_quota,
        files_quota = given.files_quota,
        confirmed_at = given.confirmed_at,
        suspended_at = given.suspended_at,
        deleted_at = given.deleted_at,
        updated_at = now()
    FROM given
    WHERE users.instance_id = :instance_id AND users.id = given.id AND given.differs
),

stored AS (
    INSERT INTO credentials (instance_id, user_id, password_hash, changed_at)
    SELECT :instance_id, id, password_hash, moment
    FROM given
    WHERE password_hash IS NOT NULL
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET password_hash = excluded.password_hash, changed_at = excluded.changed_at
),

counted AS (
    UPDATE instance_counters
    SET logins = logins + :logins::bigint, living_users = living_users + :living::bigint
    WHERE instance_id = :instance_id AND (:logins::bigint <> 0 OR :living::bigint <> 0)
),

removed AS (
    DELETE FROM logins
    USING given
    WHERE
        logins.instance_id = :instance_id AND logins.user_id = given.id
        AND given.has_new_login AND given.login_key IS NULL
),

kept AS (
    INSERT INTO logins (instance_id, login_key, user_id)
    SELECT :instance_id, login_key, id
    FROM given
    WHERE has_new_login AND login_key IS NOT NULL
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET login_key = excluded.login_key
),

moved AS (
    UPDATE accounts
    SET deleted_at = given.deleted_at
    FROM given
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = given.id AND given.moves_account
),

replaced AS (
    DELETE FROM pictures
    USING given
    WHERE
        pictures.instance_id = :instance_id AND pictures.user_id = given.id AND given.has_new_avatar
        AND given.avatar NOT LIKE '%' || pictures.name || '%'
),

void AS (
    DELETE FROM codes
    USING given
    WHERE
        codes.instance_id = :instance_id AND codes.user_id = given.id AND codes.purpose = any(given.ended_codes)
),

ended AS (
    DELETE FROM sessions
    USING given
    WHERE sessions.instance_id = :instance_id AND sessions.user_id = given.id AND given.ends_sessions
    RETURNING sessions.user_id, sessions.expires_at > given.moment AS lived
)

SELECT user_id, count(*) AS ended
FROM ended
WHERE lived
GROUP BY user_id
ORDER BY user_id;

-- name: purge_users(instance_id, ids, moment)!
-- Takes users, who are held, for good, with all that was provisioned for them. An account keeps its place for those
-- beneath it, without a name.
WITH left_behind AS (
    UPDATE accounts
    SET user_id = NULL, title = '', deleted_at = coalesce(accounts.deleted_at, :moment::timestamptz)
    FROM unnest(:ids::bigint []) AS given (id)
    WHERE accounts.instance_id = :instance_id AND accounts.user_id = given.id
)

DELETE FROM users
USING unnest(:ids::bigint []) AS given (id)
WHERE users.instance_id = :instance_id AND users.id = given.id;

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
