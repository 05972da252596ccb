-- Users who are not deleted, as getUserByEmail documents them.
SELECT
    id, :instance_name::text AS instance, email, avatar, "groups", settings, apps, "values", profile, "displayName",
    "isActive", "isAdmin", false AS "isSysAdmin", "rootFiles", "trashFiles", inbox, spam, sent, "trashEmail", drafts,
    "mainCalendar", '' AS token, 0 AS "tokenExpiresAt", email_key
FROM shown_users
WHERE deleted_at IS NULL;
