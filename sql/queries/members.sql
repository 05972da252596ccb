-- name: list_fields(instance_id)
-- An instance's own profile fields.
SELECT alias, title, type, mandatory, choices FROM profile_fields
WHERE instance_id = :instance_id AND removed_at IS NULL
ORDER BY alias;

-- name: define_field(instance_id, alias, title, type, mandatory, choices)$
-- Creates or replaces a profile field, and returns what it was before.
WITH held AS (
    SELECT jsonb_build_object('title', title, 'type', type, 'mandatory', mandatory, 'choices', choices) AS before
    FROM profile_fields
    WHERE instance_id = :instance_id AND alias = :alias AND removed_at IS NULL
    FOR NO KEY UPDATE
),

-- Reading held makes the lock come before the write.
defined AS (
    INSERT INTO profile_fields (instance_id, alias, title, type, mandatory, choices)
    SELECT :instance_id, :alias, :title, :type, :mandatory, :choices
    FROM (SELECT count(*) FROM held) AS read_first
    ON CONFLICT (instance_id, alias) DO UPDATE
    SET
        title = excluded.title, type = excluded.type, mandatory = excluded.mandatory, choices = excluded.choices,
        removed_at = NULL
    RETURNING alias
)

SELECT held.before
FROM defined
LEFT JOIN held ON true;

-- name: remove_field(instance_id, alias)$
-- Hides a profile field. Its values stay stored in the users.
WITH removed AS (
    UPDATE profile_fields
    SET removed_at = now()
    WHERE instance_id = :instance_id AND alias = :alias AND removed_at IS NULL
    RETURNING title, type, mandatory, choices
)

SELECT jsonb_build_object('title', title, 'type', type, 'mandatory', mandatory, 'choices', choices)
FROM removed;

-- name: create_document(instance_id, document_id, entity, action, user_id, fields, asked_by)!
-- Records an asynchronous change of a user. The user is locked, so its documents have an order.
INSERT INTO documents (instance_id, id, entity, action, user_id, fields, asked_by, created_at)
VALUES (
    :instance_id, :document_id, :entity, :action, :user_id, :fields, :asked_by, statement_timestamp()
);

-- name: list_unfinished(instance_id, user_id)
-- Changes of a user that are not finished, in the order of their requests.
SELECT id, fields, asked_by FROM documents
WHERE instance_id = :instance_id AND user_id = :user_id AND result IS NULL
ORDER BY created_at, id;

-- name: finish_document(instance_id, document_id, result)!
-- Stores the result of a change.
UPDATE documents
SET result = :result
WHERE instance_id = :instance_id AND id = :document_id;

-- name: get_document(instance_id, document_id)^
-- A document with its result, if it is finished; a deleted user is left out of the result.
SELECT
    d.id::text AS id, d.entity, d.action,
    CASE WHEN u.deleted_at IS NULL THEN d.result ELSE jsonb_set(d.result, '{member}', 'null') END AS result
FROM documents AS d
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = d.user_id
WHERE d.instance_id = :instance_id AND d.id = :document_id;
