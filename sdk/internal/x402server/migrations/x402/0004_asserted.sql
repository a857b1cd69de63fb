-- What a payer's own voucher says was charged, where that is more than these books know, as after a restore: the payer was
-- asked to sign for it once more. It is charged when it does.
ALTER TABLE x402_channels ADD COLUMN asserted TEXT NOT NULL DEFAULT '0';
