-- Whether the version of a transaction that was mined reverted and had used up its gas: what is sent after it is given more. 0 of what
-- was recorded before this column was there.
ALTER TABLE chain_tx ADD COLUMN ran_out BIGINT NOT NULL DEFAULT 0;
