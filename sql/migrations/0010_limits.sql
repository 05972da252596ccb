-- Limits: calls of a key, seats of an instance, quotas of its users, delays after failed logins; and groups.

-- Calls a minute; null: the server's setting.
ALTER TABLE api_keys ADD COLUMN rate_per_minute integer;

-- max_users is maxUsers of the instance's settings, beside the number it bounds: whatever makes a living user
-- counts it here, one after the other, and fails where there is no seat left.
ALTER TABLE instance_counters
ADD COLUMN groups bigint NOT NULL DEFAULT 0,
ADD COLUMN max_users bigint,
ADD CONSTRAINT instance_counters_seats CHECK (living_users <= max_users);

-- MiB; null: the instance's default.
ALTER TABLE users
ADD COLUMN mail_quota bigint,
ADD COLUMN files_quota bigint;

-- Failed logins of an account or from an address. subject is a SHA-256, so that nothing that somebody typed into
-- the wrong field stays here; accounts that do not exist have rows like those that do. forgiven_at: when the last
-- of them is forgiven, which tells how many there are now.
CREATE TABLE login_failures (
    instance_id bigint NOT NULL,
    subject bytea NOT NULL,
    forgiven_at timestamptz NOT NULL,
    delayed_until timestamptz NOT NULL,
    CONSTRAINT login_failures_pkey PRIMARY KEY (instance_id, subject),
    CONSTRAINT login_failures_instance FOREIGN KEY (instance_id) REFERENCES instances (id)
);

CREATE INDEX login_failures_end ON login_failures (forgiven_at);

-- name_key is what identity is decided by. The group Admins has no row: its members are those with is_admin.
CREATE TABLE groups (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    name text NOT NULL,
    name_key text COLLATE "C" NOT NULL,
    description text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT groups_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT groups_name UNIQUE (instance_id, name_key),
    CONSTRAINT groups_instance FOREIGN KEY (instance_id) REFERENCES instances (id)
);

-- A deleted user keeps its groups, unseen, until it is restored or purged.
CREATE TABLE group_members (
    instance_id bigint NOT NULL,
    user_id bigint NOT NULL,
    group_id bigint NOT NULL,
    CONSTRAINT group_members_pkey PRIMARY KEY (instance_id, user_id, group_id),
    CONSTRAINT group_members_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT group_members_group FOREIGN KEY (instance_id, group_id)
    REFERENCES groups (instance_id, id) ON DELETE CASCADE
);

CREATE INDEX group_members_by_group ON group_members (instance_id, group_id, user_id);

-- The members of Admins, page by page.
CREATE INDEX users_admin_ids ON users (instance_id, id) WHERE is_admin AND deleted_at IS NULL;
