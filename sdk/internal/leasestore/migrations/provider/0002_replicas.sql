-- Which gateway runs a lease, where several share the database. Every write to a
-- lease names its term, and another term means that it has another owner.
ALTER TABLE leases ADD COLUMN owner    TEXT   NOT NULL DEFAULT '';
ALTER TABLE leases ADD COLUMN term     BIGINT NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;   -- of the newest record
ALTER TABLE leases ADD COLUMN stream   BIGINT NOT NULL DEFAULT 0;   -- the newest one may write
ALTER TABLE leases ADD COLUMN command  TEXT   NOT NULL DEFAULT '';  -- why another gateway wants it ended
ALTER TABLE leases ADD COLUMN held     BIGINT NOT NULL DEFAULT 0;   -- 1: ended, and its devices not taken back yet
