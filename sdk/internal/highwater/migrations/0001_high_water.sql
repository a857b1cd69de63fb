-- The newest usage record that each metering key has signed, or was about to, of each lease.
CREATE TABLE high_water (
    key      TEXT    NOT NULL,  -- the address of the metering key, 0x and 40 hex digits
    lease    TEXT    NOT NULL,  -- 0x, 64 hex digits
    sequence BIGINT  NOT NULL,
    digest   TEXT    NOT NULL,  -- EIP-712 digest of the record
    at       BIGINT  NOT NULL,  -- unix seconds
    PRIMARY KEY (key, lease)
) WITHOUT ROWID;
CREATE INDEX high_water_by_age ON high_water (at);
