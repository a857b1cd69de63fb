-- The most that a transaction which gives way to others may cost, in wei; empty for one that may cost what MaxFee allows.
ALTER TABLE chain_tx ADD COLUMN most TEXT NOT NULL DEFAULT '';
