-- The ground floor: tenants, their keys, their users and what a user is given.
-- Every tenant table leads with instance_id, in keys and references alike, so that the same
-- statements run on one Postgres and on one sharded by instance_id.
-- Statements end with a semicolon and an empty line; the migrator runs them one by one.

CREATE TABLE instances (
    id bigint GENERATED ALWAYS AS IDENTITY,
    name text COLLATE "C" NOT NULL,
    title text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    settings jsonb NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT instances_pkey PRIMARY KEY (id),
    CONSTRAINT instances_name UNIQUE (name)
);

-- The last ids of each instance. Ids are counted per instance, so that a fresh instance numbers its
-- users, mailboxes, calendars and folders from one, whatever its neighbours hold. living_users is how
-- many are not deleted: counting a million rows would take longer than any call may.
CREATE TABLE instance_counters (
    instance_id bigint NOT NULL,
    users bigint NOT NULL DEFAULT 0,
    living_users bigint NOT NULL DEFAULT 0,
    mailboxes bigint NOT NULL DEFAULT 0,
    calendars bigint NOT NULL DEFAULT 0,
    file_folders bigint NOT NULL DEFAULT 0,
    sessions bigint NOT NULL DEFAULT 0,
    CONSTRAINT instance_counters_pkey PRIMARY KEY (instance_id),
    CONSTRAINT instance_counters_instance FOREIGN KEY (instance_id) REFERENCES instances (id)
) WITH (fillfactor = 50);

-- Only the SHA-256 of a key is kept; prefix is what an operator recognises it by.
CREATE TABLE api_keys (
    id bigint GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL,
    digest bytea NOT NULL,
    prefix text NOT NULL,
    scopes text [] NOT NULL,
    is_operator boolean NOT NULL DEFAULT false,
    default_instance_id bigint,
    networks cidr [] NOT NULL DEFAULT '{}',
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz,
    revoked_at timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_digest UNIQUE (digest),
    CONSTRAINT api_keys_default_instance FOREIGN KEY (default_instance_id) REFERENCES instances (id),
    CONSTRAINT api_keys_belongs CHECK (is_operator OR default_instance_id IS NOT NULL)
);

CREATE TABLE api_key_instances (
    api_key_id bigint NOT NULL,
    instance_id bigint NOT NULL,
    CONSTRAINT api_key_instances_pkey PRIMARY KEY (instance_id, api_key_id),
    CONSTRAINT api_key_instances_key FOREIGN KEY (api_key_id) REFERENCES api_keys (id),
    CONSTRAINT api_key_instances_instance FOREIGN KEY (instance_id) REFERENCES instances (id)
);

CREATE INDEX api_key_instances_by_key ON api_key_instances (api_key_id);

-- email keeps the spelling that was given, email_key is what identity is decided by.
-- A deleted user keeps its address until it is purged, so that it can be restored.
CREATE TABLE users (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    email text NOT NULL,
    email_key text COLLATE "C" NOT NULL,
    display_name text NOT NULL,
    is_active boolean NOT NULL DEFAULT true,
    is_admin boolean NOT NULL DEFAULT false,
    profile jsonb NOT NULL,
    app_values jsonb NOT NULL,
    settings integer [] NOT NULL,
    apps integer [] NOT NULL,
    avatar text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT users_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT users_email UNIQUE (instance_id, email_key),
    CONSTRAINT users_instance FOREIGN KEY (instance_id) REFERENCES instances (id)
);

CREATE INDEX users_admins ON users (instance_id, email_key) WHERE is_admin AND deleted_at IS NULL;

CREATE INDEX users_suspended ON users (instance_id, email_key) WHERE NOT is_active AND deleted_at IS NULL;

CREATE INDEX users_deleted ON users (instance_id, email_key) WHERE deleted_at IS NOT NULL;

CREATE INDEX users_retention ON users (deleted_at) WHERE deleted_at IS NOT NULL;

-- A user without a row here has no password and cannot log in with one.
CREATE TABLE credentials (
    instance_id bigint NOT NULL,
    user_id bigint NOT NULL,
    password_hash text NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT credentials_pkey PRIMARY KEY (instance_id, user_id),
    CONSTRAINT credentials_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE
);

-- The six special-use mailboxes (RFC 6154 calls spam Junk).
CREATE TABLE mailboxes (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    role text NOT NULL,
    CONSTRAINT mailboxes_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT mailboxes_role UNIQUE (instance_id, user_id, role),
    CONSTRAINT mailboxes_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT mailboxes_role_known
    CHECK (role IN ('inbox', 'spam', 'sent', 'trash', 'archive', 'drafts'))
);

CREATE TABLE calendars (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    role text NOT NULL,
    CONSTRAINT calendars_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT calendars_role UNIQUE (instance_id, user_id, role),
    CONSTRAINT calendars_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT calendars_role_known CHECK (role = 'main')
);

CREATE TABLE file_folders (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    role text NOT NULL,
    CONSTRAINT file_folders_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT file_folders_role UNIQUE (instance_id, user_id, role),
    CONSTRAINT file_folders_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT file_folders_role_known CHECK (role IN ('root', 'trash'))
);

-- Opaque sessions: the token is shown once, its SHA-256 is what stays.
CREATE TABLE sessions (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    user_id bigint NOT NULL,
    token_digest bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT sessions_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT sessions_token UNIQUE (instance_id, token_digest),
    CONSTRAINT sessions_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE
);

CREATE INDEX sessions_by_user ON sessions (instance_id, user_id, id);

CREATE INDEX sessions_expiry ON sessions (expires_at);
