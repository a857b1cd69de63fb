-- Under which offers the records of ticks are: a record names its offer by the hash.
CREATE TABLE x402_offers (
    hash     TEXT NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits
    document TEXT NOT NULL               -- JSON, as it was published, its signature inside
);
