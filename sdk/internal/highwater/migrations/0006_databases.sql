-- The databases whose leases have devices here, and where each was last: in_hands has their names from here on, and not where they are.
CREATE TABLE databases (
    name    TEXT NOT NULL PRIMARY KEY,  -- drawn once, and kept in the database
    address TEXT NOT NULL               -- a file's path, or where the server is
) WITHOUT ROWID;
-- The order in which leases were given their devices; 0: it is not known.
ALTER TABLE in_hands ADD COLUMN placed BIGINT NOT NULL DEFAULT 0;
