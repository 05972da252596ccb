-- Keys of this instance and no other, or all keys if instance_id is null. instances: their names, the default first.
SELECT
    k.*,
    array(
        SELECT i.name
        FROM api_key_instances AS held
        INNER JOIN instances AS i ON held.instance_id = i.id
        WHERE held.api_key_id = k.id AND i.deleted_at IS NULL
        ORDER BY held.instance_id <> k.default_instance_id, i.name
    ) AS instances
FROM api_keys AS k
WHERE
    :instance_id::bigint IS NULL
    OR (
        NOT k.is_operator AND k.default_instance_id = :instance_id
        AND NOT EXISTS (
            SELECT FROM api_key_instances AS other
            WHERE other.api_key_id = k.id AND other.instance_id <> :instance_id
        )
    );
