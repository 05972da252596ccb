-- name: find_answer(instance_id, key_id, name)^
-- The request and the answer stored under an idempotency key in the last 24 hours.
SELECT request, answer FROM idempotency_keys
WHERE
    instance_id = :instance_id AND key_id = :key_id AND name = :name
    AND created_at > now() - interval '24 hours';

-- name: claim_idempotency_key(instance_id, key_id, name, request, lock_id)^
-- Claims an idempotency key for this transaction, without waiting. is_free is false while another transaction has
-- claimed it; is_claimed is false if an answer is stored.
WITH attempt AS MATERIALIZED (
    SELECT pg_try_advisory_xact_lock(:lock_id::bigint) AS is_free
),

claimed AS (
    INSERT INTO idempotency_keys AS known (instance_id, key_id, name, request)
    SELECT :instance_id::bigint, :key_id::bigint, :name::bytea, :request::bytea
    FROM attempt
    WHERE is_free
    ON CONFLICT (instance_id, key_id, name) DO UPDATE
    SET request = excluded.request, answer = NULL, created_at = excluded.created_at
    WHERE excluded.created_at - known.created_at >= interval '24 hours'
    RETURNING 1
)

SELECT is_free, EXISTS (SELECT FROM claimed) AS is_claimed FROM attempt;

-- name: keep_answer(instance_id, key_id, name, answer)!
-- Stores the answer of the call that claimed the key, for retries.
UPDATE idempotency_keys
SET answer = :answer
WHERE instance_id = :instance_id AND key_id = :key_id AND name = :name;
