-- Distributes the tables of officerpc on Citus. Run it as the owner of the tables on the coordinator, after
-- `officerpc migrate`, and again after each upgrade: it skips tables that are already distributed. Stop the servers first, as
-- a table is locked while its rows are copied.
--
--     psql -v ON_ERROR_STOP=1 -f scripts/citus/distribute.sql "$OFFICERPC_DATABASE_URL"
--
-- Reference tables are small, rarely written, and copied to every node. The coordinator has the queue, the clock that
-- numbers all events, the heartbeat and the list of migrations. All other tables are distributed by instance_id.
DO $$
DECLARE
    reference_tables constant text [] := '{instances,api_keys,api_key_instances}';
    local_tables constant text [] := '{event_clock,heartbeats,jobs,schema_migrations}';
    missing text [];
    name text;
    reference record;
BEGIN
    -- Safe here: the triggers of events only compare the row with the clock.
    PERFORM set_config('citus.enable_unsafe_triggers', 'on', true);
    -- Foreign keys to reference tables need all shards of a node on one connection.
    PERFORM set_config('citus.multi_shard_modify_mode', 'sequential', true);
    SELECT coalesce(array_agg(t.tablename::text ORDER BY t.tablename <> 'users', t.tablename), '{}') INTO missing
    FROM pg_tables AS t
    WHERE
        t.schemaname = current_schema() AND t.tablename <> ALL(local_tables) AND t.tablename NOT LIKE 'pgqueuer%'
        AND NOT EXISTS (SELECT FROM pg_dist_partition AS d WHERE d.logicalrelid = t.tablename::regclass);
    -- Drop foreign keys: they cannot exist while only one of their tables is distributed.
    CREATE TEMPORARY TABLE dropped ON COMMIT DROP AS
    SELECT c.conrelid::regclass::text AS owner, c.conname, pg_get_constraintdef(c.oid) AS definition
    FROM pg_constraint AS c
    WHERE c.contype = 'f' AND c.conrelid = ANY(missing::regclass []);
    FOR reference IN SELECT * FROM dropped LOOP
        EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', reference.owner, reference.conname);
    END LOOP;
    FOREACH name IN ARRAY missing LOOP
        CONTINUE WHEN name <> ALL(reference_tables);
        PERFORM create_reference_table(name);
    END LOOP;
    FOREACH name IN ARRAY missing LOOP
        CONTINUE WHEN name = ANY(reference_tables);
        PERFORM create_distributed_table(
            name, 'instance_id', colocate_with => CASE WHEN name = 'users' THEN 'none' ELSE 'users' END
        );
    END LOOP;
    -- Statements call these functions on other nodes.
    PERFORM create_distributed_function('bigrams_of(text)');
    PERFORM create_distributed_function('plan_state(date, date, timestamptz)');
    FOR reference IN SELECT * FROM dropped LOOP
        EXECUTE format(
            'ALTER TABLE %s ADD CONSTRAINT %I %s', reference.owner, reference.conname, reference.definition
        );
    END LOOP;
END
$$;
