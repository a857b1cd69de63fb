-- What a payer owes on all of its channels is asked for before it gets credit.
CREATE INDEX payee_channels_by_payer ON payee_channels (payer);
