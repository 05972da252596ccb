-- The member platform: fields of a profile, accounts in sponsor trees, codes, documents of queued work,
-- pictures, and what a search looks through.

CREATE EXTENSION IF NOT EXISTS pg_trgm;

CREATE EXTENSION IF NOT EXISTS ltree;

ALTER TABLE instance_counters
ADD COLUMN accounts bigint NOT NULL DEFAULT 0,
ADD COLUMN positions bigint NOT NULL DEFAULT 0;

-- fields: alias -> value of the profile fields; language: ISO 639-1; confirmed_at: null while the
-- registration waits for the code in its mail.
ALTER TABLE users
ADD COLUMN fields jsonb NOT NULL DEFAULT '{}',
ADD COLUMN language text NOT NULL DEFAULT 'en',
ADD COLUMN confirmed_at timestamptz DEFAULT now();

-- A line each for the address and the name, so that no match reaches from one into the other.
ALTER TABLE users
ADD COLUMN full_name text GENERATED ALWAYS AS (
    coalesce(
        nullif(btrim(coalesce(fields ->> 'firstname', '') || ' ' || coalesce(fields ->> 'lastname', '')), ''),
        display_name
    )
) STORED;

ALTER TABLE users
ADD COLUMN search_text text GENERATED ALWAYS AS (
    lower(
        email || E'\n' || coalesce(
            nullif(btrim(coalesce(fields ->> 'firstname', '') || ' ' || coalesce(fields ->> 'lastname', '')), ''),
            display_name
        )
    )
) STORED;

CREATE INDEX users_search ON users USING gin (search_text gin_trgm_ops) WITH (fastupdate = off);

-- An account outlives its user where others stand beneath it; its user is then null.
CREATE TABLE accounts (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    user_id bigint,
    sponsor_id bigint,
    title text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    deleted_at timestamptz,
    CONSTRAINT accounts_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT accounts_user_once UNIQUE (instance_id, user_id),
    CONSTRAINT accounts_instance FOREIGN KEY (instance_id) REFERENCES instances (id),
    CONSTRAINT accounts_user FOREIGN KEY (instance_id, user_id) REFERENCES users (instance_id, id),
    CONSTRAINT accounts_sponsor FOREIGN KEY (instance_id, sponsor_id) REFERENCES accounts (instance_id, id)
);

CREATE INDEX accounts_by_sponsor ON accounts (instance_id, sponsor_id);

-- A place of an account in a tree. path is the way from the root down to it, headed by instance and tree,
-- so that one index answers for every tree; an account stands once in a tree.
CREATE TABLE positions (
    instance_id bigint NOT NULL,
    id bigint NOT NULL,
    tree_id integer NOT NULL,
    account_id bigint NOT NULL,
    path ltree NOT NULL,
    CONSTRAINT positions_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT positions_account UNIQUE (instance_id, tree_id, account_id),
    -- Two labels of heading and 1,000 levels.
    CONSTRAINT positions_depth CHECK (nlevel(path) <= 1002),
    CONSTRAINT positions_place FOREIGN KEY (instance_id, account_id)
    REFERENCES accounts (instance_id, id) ON DELETE CASCADE
);

-- The first hundred labels: a whole path of many more would not fit a page of the index.
CREATE INDEX positions_path ON positions USING gist (subpath(path, 0, 100) gist_ltree_ops (siglen = 64));

-- Single-use codes that go out by mail, stored as SHA-256, bound to a user and a purpose.
CREATE TABLE codes (
    instance_id bigint NOT NULL,
    digest bytea NOT NULL,
    user_id bigint NOT NULL,
    purpose text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CONSTRAINT codes_pkey PRIMARY KEY (instance_id, digest),
    CONSTRAINT codes_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE,
    CONSTRAINT codes_purpose_known CHECK (purpose IN ('confirm', 'reset'))
);

CREATE INDEX codes_by_user ON codes (instance_id, user_id);

CREATE INDEX codes_expiry ON codes (expires_at);

-- What was asked of the queue and what came of it; result is null until it is done. What changes one user
-- is done in the order in which it was asked, whatever the order in which the queue hands it out.
CREATE TABLE documents (
    instance_id bigint NOT NULL,
    id uuid NOT NULL,
    entity text NOT NULL,
    action text NOT NULL,
    user_id bigint NOT NULL,
    fields jsonb NOT NULL DEFAULT '{}',
    result jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT documents_pkey PRIMARY KEY (instance_id, id),
    CONSTRAINT documents_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE
);

CREATE INDEX documents_by_user ON documents (instance_id, user_id, created_at);

CREATE INDEX documents_age ON documents (created_at);

-- An instance's own profile fields, beside those that every instance has.
CREATE TABLE profile_fields (
    instance_id bigint NOT NULL,
    alias text COLLATE "C" NOT NULL,
    title text NOT NULL,
    type text NOT NULL,
    mandatory boolean NOT NULL,
    choices text [] NOT NULL DEFAULT '{}',
    CONSTRAINT profile_fields_pkey PRIMARY KEY (instance_id, alias),
    CONSTRAINT profile_fields_instance FOREIGN KEY (instance_id) REFERENCES instances (id),
    CONSTRAINT profile_fields_type_known CHECK (type IN ('string', 'text', 'date', 'number', 'choice'))
);

-- Pictures, re-encoded, in two sizes. The name is random: knowing it is the right to see it.
CREATE TABLE pictures (
    instance_id bigint NOT NULL,
    user_id bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    media_type text NOT NULL,
    small bytea NOT NULL,
    large bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pictures_pkey PRIMARY KEY (instance_id, user_id),
    CONSTRAINT pictures_name UNIQUE (instance_id, name),
    CONSTRAINT pictures_user FOREIGN KEY (instance_id, user_id)
    REFERENCES users (instance_id, id) ON DELETE CASCADE
);
