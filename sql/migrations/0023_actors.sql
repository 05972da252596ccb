-- What the actor of an event is: key, person or system. key_id and key_name hold the id and name of any kind.
-- Null where a server of an earlier version wrote the event: then key_id tells a key from the system (0 or less).
ALTER TABLE events
ADD COLUMN actor_kind text;
