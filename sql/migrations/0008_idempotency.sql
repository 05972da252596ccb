-- Calls that may be sent again: what was asked under an idempotency key, and what was answered. A row is
-- committed with the work of its call or not at all, and has had its time after 24 hours.
-- instance_id is that of the API key, 0 for an operator's. name and request are keyed digests, and answer is
-- sealed: nobody who reads this table learns a password or a token from it.
CREATE TABLE idempotency_keys (
    instance_id bigint NOT NULL,
    key_id bigint NOT NULL,
    name bytea NOT NULL,
    request bytea NOT NULL,
    answer bytea,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (instance_id, key_id, name)
);

CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
