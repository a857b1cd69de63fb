-- A rental is one channel that this renter funds, or is about to, and the lease
-- it pays for. The row is here before anything is signed that could move money.
CREATE TABLE rentals (
    channel    TEXT   NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits
    state      TEXT   NOT NULL,              -- opening, running, disputed, closing, leaving, finished
    url        TEXT   NOT NULL,              -- where the provider is
    document   TEXT   NOT NULL,              -- JSON: terms, offer, funding, lease, checker
    updated_at BIGINT NOT NULL               -- unix milliseconds
);
CREATE INDEX rentals_by_state ON rentals (state);

-- Usage records that were checked and found right, in the chain that they form:
-- what was paid, and for what.
CREATE TABLE rental_records (
    channel    TEXT   NOT NULL REFERENCES rentals (channel),
    lease      TEXT   NOT NULL,
    sequence   BIGINT NOT NULL,
    record     TEXT   NOT NULL,              -- JSON of metering.SignedRecord
    PRIMARY KEY (channel, lease, sequence)
);

-- What a provider sent that was refused, as it came: a signed lie is proof.
CREATE TABLE rental_evidence (
    hash       TEXT   NOT NULL PRIMARY KEY,  -- of url, channel, reason and document: nobody fills the disk with repeats
    channel    TEXT   NOT NULL DEFAULT '',   -- empty: it came before there was a channel
    url        TEXT   NOT NULL,
    reason     TEXT   NOT NULL,
    document   TEXT   NOT NULL,
    at         BIGINT NOT NULL               -- unix milliseconds
);
CREATE INDEX rental_evidence_by_channel ON rental_evidence (channel, at);
