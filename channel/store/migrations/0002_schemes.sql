-- Channels of more than one scheme: 0 is session, 1 is batch-settlement, whose terms have two parts more. The delay is
-- in seconds.

ALTER TABLE payee_channels ADD COLUMN scheme SMALLINT NOT NULL DEFAULT 0;
ALTER TABLE payee_channels ADD COLUMN payee_authorizer BLOB NOT NULL DEFAULT X'0000000000000000000000000000000000000000';
ALTER TABLE payee_channels ADD COLUMN withdraw_delay BIGINT NOT NULL DEFAULT 0;

ALTER TABLE payer_channels ADD COLUMN scheme SMALLINT NOT NULL DEFAULT 0;
ALTER TABLE payer_channels ADD COLUMN payee_authorizer BLOB NOT NULL DEFAULT X'0000000000000000000000000000000000000000';
ALTER TABLE payer_channels ADD COLUMN withdraw_delay BIGINT NOT NULL DEFAULT 0;
