-- What x402 needs beside a channel's vouchers and charges.
CREATE TABLE x402_channels (
    channel      TEXT NOT NULL PRIMARY KEY,
    prepaid      TEXT NOT NULL DEFAULT '0', -- told as charged before it was used, cumulative
    reserved     TEXT NOT NULL DEFAULT '0', -- what may be charged at most until the next request, cumulative
    refund_nonce TEXT NOT NULL DEFAULT '0'
);

-- The newest requests that were served, so that one that is sent again is
-- answered and not charged.
CREATE TABLE x402_requests (
    channel       TEXT   NOT NULL,
    max_claimable TEXT   NOT NULL,
    hash          TEXT   NOT NULL,             -- of method, address and body
    kind          TEXT   NOT NULL,
    base          TEXT   NOT NULL,             -- charged before it, cumulative
    charged       TEXT   NOT NULL DEFAULT '',  -- charged after it, cumulative; '' while that is open
    lease         TEXT   NOT NULL DEFAULT '',
    sequence      BIGINT NOT NULL DEFAULT 0,   -- of the lease's newest record before it
    tx            TEXT   NOT NULL DEFAULT '',  -- of its deposit or refund
    moved         TEXT   NOT NULL DEFAULT '0', -- by that
    status        BIGINT NOT NULL DEFAULT 0,   -- of the copy of the answer; 0: there is none
    header        TEXT   NOT NULL DEFAULT '{}',
    body          BYTEA,
    answered_at   BIGINT NOT NULL DEFAULT 0,   -- milliseconds since 1970
    broken        BIGINT NOT NULL DEFAULT 0,   -- 1: the connection was gone before the answer
    created_at    BIGINT NOT NULL,
    PRIMARY KEY (channel, max_claimable, hash)
);
CREATE INDEX x402_requests_by_age ON x402_requests (created_at);
