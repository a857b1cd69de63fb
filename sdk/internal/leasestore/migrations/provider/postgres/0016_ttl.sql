-- For how many milliseconds a row was written, from then on. One that has longer to go was written before the server's clock was
-- set back: how old it is is not known, and it has so long from when that is seen. A program of before does not say; it writes none
-- for longer than a day.
ALTER TABLE gateways     ADD COLUMN ttl BIGINT NOT NULL DEFAULT 86400000;
ALTER TABLE leaders      ADD COLUMN ttl BIGINT NOT NULL DEFAULT 86400000;
ALTER TABLE claims       ADD COLUMN ttl BIGINT NOT NULL DEFAULT 86400000;
ALTER TABLE reservations ADD COLUMN ttl BIGINT NOT NULL DEFAULT 86400000;
