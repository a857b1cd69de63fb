-- What a node knows of the channel of each lease, and how far its gateways are.
CREATE TABLE spool (
    lease     TEXT   NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits; written before the row in leases
    terms     TEXT   NOT NULL,              -- JSON of channel.Terms
    accepted  TEXT   NOT NULL,              -- base units vouchered, decimal, as a gateway said last; it never falls
    deposit   TEXT   NOT NULL,              -- base units, decimal, as a gateway said last
    delivered BIGINT NOT NULL DEFAULT 0,    -- the newest record that a gateway has on disk
    closed    BIGINT NOT NULL DEFAULT 0     -- 1: no gateway asks for more of it
);
