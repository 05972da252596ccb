-- A role to serve with that owns no tables: it reads and inserts events (the audit), and nothing lets it alter them.
-- Once, as the owner of the database, after `officerpc migrate` has run as that role:
--   psql "$OWNER_URL" -c "CREATE ROLE officerpc_app LOGIN PASSWORD '...'" -f scripts/deploy/role.sql
-- Then `officerpc serve` and `officerpc work` run with OFFICERPC_DATABASE_URL=postgresql://officerpc_app:...@host/database,
-- and each new version's `officerpc migrate` with the owner's, before they start. Tables of later migrations are covered.

GRANT USAGE ON SCHEMA public TO officerpc_app;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO officerpc_app;

GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO officerpc_app;

ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO officerpc_app;

ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO officerpc_app;

REVOKE UPDATE, DELETE ON events FROM officerpc_app;

REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM officerpc_app;
