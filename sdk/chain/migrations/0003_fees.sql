-- What a rollup is expected to charge for a transaction's data beside its gas, in wei; 0 on chains that charge none.
ALTER TABLE chain_tx ADD COLUMN data_fee TEXT NOT NULL DEFAULT '0';
