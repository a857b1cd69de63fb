-- The newest term in which a gateway of this host has run a command on the devices of each lease, and until when one may
-- still run of a gateway that had let go of it.
CREATE TABLE terms (
    lease TEXT   NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits
    term  BIGINT NOT NULL,
    late  BIGINT NOT NULL,              -- unix nanoseconds; 0: none runs
    at    BIGINT NOT NULL               -- unix seconds
) WITHOUT ROWID;
CREATE INDEX terms_by_age ON terms (at);
-- What is written to see whether anything can be.
CREATE TABLE probe (
    id INTEGER PRIMARY KEY,
    at BIGINT NOT NULL                  -- unix nanoseconds
);
