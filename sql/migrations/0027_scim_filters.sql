-- What SCIM filters look for beyond what users_find has: display names that differ from first and last name, logins,
-- formatted names, and e-mail addresses beside the user's own.
-- concurrently
CREATE INDEX users_find_others ON users
USING gin (
    instance_id,
    (lower(display_name || E'\n' || coalesce(login, '') || E'\n' || coalesce(attributes #>> '{name,formatted}', '')) || E'\n' || coalesce(attributes ->> 'emailKeys', '')) gin_trgm_ops,
    bigrams(lower(display_name || E'\n' || coalesce(login, '') || E'\n' || coalesce(attributes #>> '{name,formatted}', '')) || E'\n' || coalesce(attributes ->> 'emailKeys', ''))
)
WHERE (display_name <> full_name OR login IS NOT NULL OR attributes ?| '{name,emailKeys}') AND deleted_at IS NULL;
