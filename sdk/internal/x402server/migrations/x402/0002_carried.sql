-- What was used in leases that have ended and is less than a base unit, in parts of which 3,600,000,000,000 make one: it is
-- charged as soon as it makes one, or many small requests would cost nothing.
ALTER TABLE x402_channels ADD COLUMN carried BIGINT NOT NULL DEFAULT 0;
