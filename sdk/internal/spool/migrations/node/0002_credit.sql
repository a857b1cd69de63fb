-- What may be owed of the lease beyond what is vouchered, base units, decimal, as a gateway said last. '': the offer's credit.
ALTER TABLE spool ADD COLUMN credit TEXT NOT NULL DEFAULT '';
