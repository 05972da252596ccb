-- name: begin_office365(instance_id, user_id)^
-- Requests a user's creation in Microsoft's directory. No row if it is pending or done. A pending row that was
-- untouched for six hours starts again: tries end after five and a half, and the worker could not store the end.
WITH held AS MATERIALIZED (
    SELECT state FROM office365_accounts
    WHERE instance_id = :instance_id AND user_id = :user_id
),

begun AS (
    INSERT INTO office365_accounts AS known (instance_id, user_id, state)
    VALUES (:instance_id, :user_id, 'pending')
    ON CONFLICT (instance_id, user_id) DO UPDATE
    SET state = 'pending', error = NULL, updated_at = excluded.updated_at
    WHERE
        known.state = 'failed'
        OR (known.state = 'pending' AND excluded.updated_at - known.updated_at > interval '6 hours')
    RETURNING user_id
)

SELECT begun.user_id, held.state AS state_before
FROM begun
LEFT JOIN held ON true;

-- name: get_office365_state(instance_id, email_key)^
-- The state of a user's creation in Microsoft's directory.
SELECT
    o.state, o.object_id AS "objectId", o.error,
    floor(extract(EPOCH FROM o.updated_at))::bigint AS "updatedAt"
FROM users AS u
INNER JOIN office365_accounts AS o ON o.instance_id = :instance_id AND o.user_id = u.id
WHERE u.instance_id = :instance_id AND u.email_key = :email_key AND u.deleted_at IS NULL;

-- name: get_office365_user(instance_id, user_id)^
-- The user to create, the settings with the credentials, and whether the work still has to be done.
SELECT
    u.uuid::text AS uuid, u.email, u.display_name, u.fields, u.is_active, i.settings, o.state = 'done' AS is_done,
    u.deleted_at IS NOT NULL OR i.deleted_at IS NOT NULL AS is_gone, NOT i.is_active AS is_suspended
FROM office365_accounts AS o
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = o.user_id
INNER JOIN instances AS i ON i.id = :instance_id
WHERE o.instance_id = :instance_id AND o.user_id = :user_id;

-- name: note_office365(instance_id, user_id, state, object_id, error)^
-- Stores the outcome of a try; without an error the last error stays. No row if the state is done already.
WITH held AS (
    SELECT state FROM office365_accounts
    WHERE instance_id = :instance_id AND user_id = :user_id AND state <> 'done'
    FOR NO KEY UPDATE
)

UPDATE office365_accounts AS o
SET
    state = :state,
    object_id = :object_id,
    error = CASE WHEN :state <> 'done' THEN coalesce(:error, o.error) END,
    updated_at = now()
FROM held
WHERE o.instance_id = :instance_id AND o.user_id = :user_id
RETURNING held.state AS state_before, o.error;
