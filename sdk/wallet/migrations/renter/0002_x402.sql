-- A slate is what this renter knows of a channel that it pays an x402 server from,
-- beside what the payer's own table says was signed. The row is here before
-- anything is signed that could move money.
CREATE TABLE x402_slates (
    channel    TEXT   NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits
    url        TEXT   NOT NULL,              -- where it was paid first
    document   TEXT   NOT NULL,              -- JSON: charged, deposit on its way, dispute
    updated_at BIGINT NOT NULL               -- unix milliseconds
);

-- Usage records of GPU time that was paid tick by tick, checked and found right.
CREATE TABLE x402_records (
    channel    TEXT   NOT NULL REFERENCES x402_slates (channel),
    lease      TEXT   NOT NULL,
    sequence   BIGINT NOT NULL,
    record     TEXT   NOT NULL,              -- JSON of metering.SignedRecord
    PRIMARY KEY (channel, lease, sequence)
);
