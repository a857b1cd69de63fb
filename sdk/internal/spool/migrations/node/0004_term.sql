-- The fencing token of who runs the lease, the newest that a gateway has named: what is said under an older one does not count. 0: none
-- was named.
ALTER TABLE spool ADD COLUMN owner_term BIGINT NOT NULL DEFAULT 0;
-- When the gateways wrote the lease down, their unix nanoseconds; it grows from lease to lease of a channel. 0: it was not said.
ALTER TABLE spool ADD COLUMN written_at BIGINT NOT NULL DEFAULT 0;
