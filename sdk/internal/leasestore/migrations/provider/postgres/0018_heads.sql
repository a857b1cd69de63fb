-- The newest block of the chain that a gateway's endpoint has: one that leads and stands still is told so by the others'.
ALTER TABLE gateways ADD COLUMN head BIGINT NOT NULL DEFAULT 0;
