-- name: list_fields(instance_id)
-- An instance's own profile fields.
SELECT alias, title, type, mandatory, choices FROM profile_fields
WHERE instance_id = :instance_id AND removed_at IS NULL
ORDER BY alias;

-- name: define_field(instance_id, alias, title, type, mandatory, choices)$
-- A new field, or another form of one; what it was before.
WITH held AS (
    SELECT jsonb_build_object('title', title, 'type', type, 'mandatory', mandatory, 'choices', choices) AS before
    FROM profile_fields
    WHERE instance_id = :instance_id AND alias = :alias AND removed_at IS NULL
    FOR NO KEY UPDATE
),

-- As the insertion reads it, it holds the old form before it writes.
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
-- The values that users have of it stay where they are, unseen.
WITH removed AS (
    UPDATE profile_fields
    SET removed_at = now()
    WHERE instance_id = :instance_id AND alias = :alias AND removed_at IS NULL
    RETURNING title, type, mandatory, choices
)

SELECT jsonb_build_object('title', title, 'type', type, 'mandatory', mandatory, 'choices', choices)
FROM removed;

-- name: create_document(instance_id, document_id, entity, action, user_id, fields, asked_by)!
-- A note of what was asked of the queue about a user, who is held, which puts those of one user in an order.
INSERT INTO documents (instance_id, id, entity, action, user_id, fields, asked_by, created_at)
VALUES (
    :instance_id, :document_id, :entity, :action, :user_id, :fields, :asked_by, statement_timestamp()
);

-- name: list_unfinished(instance_id, user_id)
-- What was asked about a user and is not done, in the order in which it was asked.
SELECT id, fields, asked_by FROM documents
WHERE instance_id = :instance_id AND user_id = :user_id AND result IS NULL
ORDER BY created_at, id;

-- name: finish_document(instance_id, document_id, result)!
-- What came of it.
UPDATE documents
SET result = :result
WHERE instance_id = :instance_id AND id = :document_id;

-- name: get_document(instance_id, document_id)^
-- A document with its result, if there is one yet; a deleted user is not shown in it.
SELECT
    d.id::text AS id, d.entity, d.action,
    CASE WHEN u.deleted_at IS NULL THEN d.result ELSE jsonb_set(d.result, '{member}', 'null') END AS result
FROM documents AS d
INNER JOIN users AS u ON u.instance_id = :instance_id AND u.id = d.user_id
WHERE d.instance_id = :instance_id AND d.id = :document_id;
