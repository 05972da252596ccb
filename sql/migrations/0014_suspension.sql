-- Suspended instances end their sessions.

-- is_suspended: the opposite of is_active of the instance, beside the numbers that every login counts up: a login that
-- was under way when the instance was suspended waits for this row and then makes no session.
ALTER TABLE instance_counters ADD COLUMN is_suspended boolean NOT NULL DEFAULT false;

UPDATE instance_counters
SET is_suspended = true
FROM instances
WHERE instances.id = instance_counters.instance_id AND NOT instances.is_active;

DELETE FROM sessions
USING instances
WHERE instances.id = sessions.instance_id AND NOT instances.is_active;
