-- The order of a channel's requests, whatever a clock said: the newest are kept.
ALTER TABLE x402_requests ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
