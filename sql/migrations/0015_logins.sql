-- A login is a name of its own and need not be an e-mail.

-- users.email and email_key: the e-mail; for a user who has none, the login, which then holds no @, as every e-mail does.
-- login: the name to log in with where it is another one than that.
ALTER TABLE users ADD COLUMN login text;

-- Those logins by what identity is decided by. No two users of an instance share a name, be it e-mail or login. Each of
-- the two tables has a unique constraint of its own; what is in one and not in the other is decided by whoever holds the
-- row of instance_counters: methods._names has the rules.
CREATE TABLE logins (
    instance_id bigint NOT NULL,
    login_key text COLLATE "C" NOT NULL,
    user_id bigint NOT NULL,
    CONSTRAINT logins_pkey PRIMARY KEY (instance_id, login_key),
    CONSTRAINT logins_user_once UNIQUE (instance_id, user_id),
    CONSTRAINT logins_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE
);

-- How often a row of logins was written: a creation that waited for one of those sees that it has to look again.
ALTER TABLE instance_counters ADD COLUMN logins bigint NOT NULL DEFAULT 0;

CREATE OR REPLACE FUNCTION user_state(u users) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
SELECT jsonb_build_object(
    'email', CASE WHEN strpos(u.email, '@') > 0 THEN u.email END,
    'login', CASE WHEN strpos(u.email, '@') > 0 THEN u.login ELSE u.email END,
    'displayName', u.display_name, 'isActive', u.is_active, 'isAdmin', u.is_admin,
    'isConfirmed', u.confirmed_at IS NOT NULL, 'profile', u.profile, 'values', u.app_values,
    'settings', u.settings, 'apps', u.apps, 'avatar', u.avatar, 'fields', u.fields, 'language', u.language,
    'externalId', u.external_id, 'sessionsLimit', u.sessions_limit, 'isPlanAdmin', u.is_plan_admin,
    'onlySeesReadable', u.only_sees_readable,
    'quotas', jsonb_build_object('mail', u.mail_quota, 'files', u.files_quota)
)
$$;
