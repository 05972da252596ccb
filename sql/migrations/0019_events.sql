-- Events hold what tenants wrote, whole, and are read in pages of so many bytes. Without compression pg_column_size tells
-- how large a value is once it is read, and does not have to read it.
ALTER TABLE events
ALTER COLUMN before SET STORAGE EXTERNAL,
ALTER COLUMN after SET STORAGE EXTERNAL;
