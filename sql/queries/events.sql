-- name: insert_events(instance_id, types, user_ids, befores, afters, method, key_id, key_name, request_id, address, origin)!
-- What one call changed, in its order; once in a transaction.
INSERT INTO events (
    instance_id, place, type, user_id, before, after, method, key_id, key_name, request_id, address, origin
)
SELECT
    :instance_id, change.place, change.type, change.user_id, change.before, change.after, :method, :key_id, :key_name, :request_id,
    :address, :origin
FROM unnest(:types::text [], :user_ids::bigint [], :befores::jsonb [], :afters::jsonb [])
WITH ORDINALITY AS change (type, user_id, before, after, place);
