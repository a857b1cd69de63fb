-- The most that a record signed on this host, or about to be, says is owed on each channel.
CREATE TABLE owed (
    channel TEXT   NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits
    total   TEXT   NOT NULL,              -- base units, 64 hex digits: its order is that of the amounts
    at      BIGINT NOT NULL               -- unix seconds
) WITHOUT ROWID;
CREATE INDEX owed_by_age ON owed (at);
