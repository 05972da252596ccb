-- A role for serving that owns no tables: it can read and insert events (the audit), and cannot change them.
-- Run it once as the owner of the database, after `officerpc migrate` as the same role:
--   psql "$OWNER_URL" -c "CREATE ROLE officerpc_app LOGIN PASSWORD '...'" -f scripts/deploy/role.sql
-- Then run `officerpc serve` and `officerpc work` with OFFICERPC_DATABASE_URL=postgresql://officerpc_app:...@host/database.
-- Before a new version starts, run its `officerpc migrate` as the owner. Tables of later migrations are included.

GRANT USAGE ON SCHEMA public TO officerpc_app;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO officerpc_app;

GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO officerpc_app;

ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO officerpc_app;

ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO officerpc_app;

REVOKE UPDATE, DELETE ON events FROM officerpc_app;

REVOKE INSERT, UPDATE, DELETE ON schema_migrations FROM officerpc_app;
