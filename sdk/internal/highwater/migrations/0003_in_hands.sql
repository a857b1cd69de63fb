-- The leases whose devices are in their renters' hands, by the database that knows them.
CREATE TABLE in_hands (
    database TEXT NOT NULL,  -- its path
    lease    TEXT NOT NULL,  -- 0x, 64 hex digits
    devices  TEXT NOT NULL,  -- JSON array of UUIDs
    PRIMARY KEY (database, lease)
) WITHOUT ROWID;
