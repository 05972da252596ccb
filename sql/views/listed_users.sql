-- Users as listUsers shows them, deleted ones too: addresses after one and with a prefix.
SELECT id, email, "displayName", "isActive", "isAdmin", "createdAt", "deletedAt", email_key, deleted_at
FROM shown_users
WHERE
    email_key > :after AND email_key >= :starts_with AND email_key < :starts_with || chr(1114111);
