-- What keeps a search and a branch fast among a million users: found by three letters or by two, within the
-- instance, or walked in the order asked for; and places that know whose they are and what is above them.

CREATE EXTENSION IF NOT EXISTS btree_gin;

-- Every two letters in a row, and the last one alone, for texts too short to have three and for scripts
-- that write a name in two.
CREATE FUNCTION bigrams(words text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT array_to_tsvector(array_agg(DISTINCT substr(words, place, 2)))
    FROM generate_series(1, length(words)) AS place
);

-- What bigrams() of a text has to hold for the text to hold these words.
CREATE FUNCTION bigrams_of(words text) RETURNS tsquery
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (
    SELECT
        string_agg(
            '''' || replace(replace(substr(words, place, 2), '\', '\\'), '''', '''''') || ''''
            || CASE WHEN length(words) = 1 THEN ':*' ELSE '' END,
            ' & '
        )::tsquery
    FROM generate_series(1, greatest(length(words) - 1, 1)) AS place
);

-- Half a megabyte of new entries waits in a list, which makes a creation a third cheaper.
CREATE INDEX users_find ON users
USING gin (instance_id, search_text gin_trgm_ops, bigrams(search_text))
WITH (gin_pending_list_limit = 512);

DROP INDEX users_search;

CREATE INDEX users_names ON users (instance_id, lower(full_name), id) WHERE deleted_at IS NULL;

ALTER TABLE positions
ADD COLUMN user_id bigint,
ADD COLUMN parent_id bigint;

UPDATE positions
SET
    user_id = accounts.user_id,
    parent_id = CASE
        WHEN nlevel(positions.path) > 3 THEN ltree2text(subpath(positions.path, -2, 1))::bigint
    END
FROM accounts
WHERE accounts.instance_id = positions.instance_id AND accounts.id = positions.account_id;

CREATE INDEX positions_user ON positions (instance_id, tree_id, user_id);

CREATE INDEX positions_parent ON positions (instance_id, parent_id, id);

-- In this order whatever is beneath a place comes right after it. Of the path its first hundred labels: a whole
-- one of many more would not fit a page of the index.
CREATE INDEX positions_order ON positions (instance_id, subpath(path, 0, 100));

DROP INDEX positions_path;

-- A field that was taken away hides the values that users have of it.
ALTER TABLE profile_fields
ADD COLUMN removed_at timestamptz;
