-- Users that are also created in Microsoft's directory, and instances that can be deleted.

-- What came of creating a user there: pending while the queue works at it; object_id is Microsoft's, null
-- where the user was there already; error is what the last try met.
CREATE TABLE office365_accounts (
    instance_id bigint NOT NULL,
    user_id bigint NOT NULL,
    state text NOT NULL,
    object_id text,
    error text,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT office365_accounts_pkey PRIMARY KEY (instance_id, user_id),
    CONSTRAINT office365_accounts_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT office365_accounts_state_known CHECK (state IN ('pending', 'done', 'failed'))
);

-- A deleted instance keeps its rows, under a name that no call can give.
ALTER TABLE instances ADD COLUMN deleted_at timestamptz;
