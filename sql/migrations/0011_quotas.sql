-- Quotas are part of what a user is: whatever changes them is told like any other change.
CREATE OR REPLACE FUNCTION user_state(u users) RETURNS jsonb
LANGUAGE sql STABLE
AS $$
SELECT jsonb_build_object(
    'email', u.email, 'displayName', u.display_name, 'isActive', u.is_active, 'isAdmin', u.is_admin,
    'isConfirmed', u.confirmed_at IS NOT NULL, 'profile', u.profile, 'values', u.app_values,
    'settings', u.settings, 'apps', u.apps, 'avatar', u.avatar, 'fields', u.fields, 'language', u.language,
    'externalId', u.external_id, 'sessionsLimit', u.sessions_limit, 'isPlanAdmin', u.is_plan_admin,
    'onlySeesReadable', u.only_sees_readable,
    'quotas', jsonb_build_object('mail', u.mail_quota, 'files', u.files_quota)
)
$$;
