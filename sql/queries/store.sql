-- name: find_store_user(instance_id, user_id, email_key, external_id)$
-- The id of a user, by id first, then by e-mail, then by external id.
SELECT id FROM users
WHERE
    instance_id = :instance_id AND deleted_at IS NULL
    AND (id = :user_id OR email_key = :email_key OR external_id = :external_id)
ORDER BY coalesce(id = :user_id, false) DESC, coalesce(email_key = :email_key, false) DESC
LIMIT 1;


-- name: end_excess_sessions(instance_id, user_id, sessions_limit)$
-- Deletes all but the newest sessions_limit valid sessions of a user, who is locked; how many.
WITH ended AS (
    DELETE FROM sessions
    USING (
        SELECT id FROM sessions
        WHERE instance_id = :instance_id AND user_id = :user_id AND expires_at > now()
        ORDER BY id DESC OFFSET :sessions_limit
    ) AS excess
    WHERE sessions.instance_id = :instance_id AND sessions.id = excess.id
    RETURNING sessions.id
)

SELECT count(*) AS ended FROM ended;

-- name: end_session_by_id(instance_id, session_id)^
-- Deletes a valid session; returns its user.
DELETE FROM sessions
USING users AS u
WHERE
    sessions.instance_id = :instance_id AND sessions.id = :session_id AND sessions.expires_at > now()
    AND u.instance_id = :instance_id AND u.id = sessions.user_id
RETURNING sessions.id, sessions.user_id, u.is_admin;
