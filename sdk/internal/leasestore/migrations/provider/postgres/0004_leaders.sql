-- Until when a leader leads, milliseconds since 1970 by the server's clock. It is renewed after each look at the chain.
ALTER TABLE leaders ADD COLUMN expires BIGINT NOT NULL DEFAULT 0;
