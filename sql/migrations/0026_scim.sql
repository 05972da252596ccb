-- SCIM (RFC 7643): what it knows of users and groups beyond what has columns already.

-- Attributes of users under their SCIM names (server/directory/scim/users.py). emailKeys is for searches alone and never
-- shown: what the identity of each address of `emails` is decided by.
ALTER TABLE users ADD COLUMN attributes jsonb NOT NULL DEFAULT '{}';

-- Most users have none.
-- concurrently
CREATE INDEX users_attributes ON users USING gin (instance_id, attributes jsonb_path_ops)
WHERE attributes <> '{}' AND deleted_at IS NULL;

-- updated_at: when the group or its memberships last changed.
ALTER TABLE groups
ADD COLUMN external_id text,
ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();

-- concurrently
CREATE UNIQUE INDEX groups_external_id ON groups (instance_id, external_id) WHERE external_id IS NOT NULL;
