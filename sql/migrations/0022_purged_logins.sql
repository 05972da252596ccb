-- Whose login it was, once the user itself is gone.
-- concurrently
CREATE INDEX events_of_purged_logins ON events (instance_id, lower(before ->> 'login'))
WHERE type = 'user.purged' AND before ->> 'login' IS NOT NULL;
