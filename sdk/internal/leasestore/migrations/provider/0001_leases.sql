-- A lease is one rental of named devices over one channel. What it owes stands
-- with the channel (spent) and in its newest usage record.
CREATE TABLE leases (
    id            TEXT    NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits
    channel       TEXT    NOT NULL,
    offer         TEXT    NOT NULL,              -- hash of the offer it was rented under
    secret_hash   TEXT    NOT NULL,              -- SHA-256 of the lease secret: the secret itself is the renter's
    gpus          INTEGER NOT NULL,
    allocation    TEXT    NOT NULL,              -- JSON of sdk.Allocation
    owed_before   TEXT    NOT NULL,              -- base units the channel had spent when the lease began, decimal
    state         TEXT    NOT NULL,              -- allocating, active, suspended, ended
    reason        TEXT    NOT NULL DEFAULT '',
    meter         TEXT    NOT NULL DEFAULT '',   -- JSON of the meter's totals at the newest record
    started_at    BIGINT  NOT NULL,              -- unix nanoseconds: it also says which lease of a channel is the newest
    ended_at      BIGINT  NOT NULL DEFAULT 0
);
CREATE INDEX leases_by_channel ON leases (channel);
CREATE INDEX leases_by_state ON leases (state);

-- Signed usage records: the provider's statement of metered time, kept for as
-- long as somebody may ask what was paid for.
CREATE TABLE records (
    lease    TEXT   NOT NULL REFERENCES leases (id),
    sequence BIGINT NOT NULL,
    record   TEXT   NOT NULL,                    -- JSON of metering.SignedRecord
    PRIMARY KEY (lease, sequence)
);

-- Every offer that was ever published: records name one by its hash.
CREATE TABLE offers (
    hash     TEXT   NOT NULL PRIMARY KEY,
    document TEXT   NOT NULL
);

-- Challenges that were used. A proof over one of them must not work twice; the
-- row may go when the challenge has expired.
CREATE TABLE used_challenges (
    id      TEXT   NOT NULL PRIMARY KEY,
    expires BIGINT NOT NULL                      -- unix seconds
);
CREATE INDEX used_challenges_by_expiry ON used_challenges (expires);

-- The secret that challenges are minted with, shared by replicas.
CREATE TABLE provider_secrets (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
