-- The fencing token of credit: what a gateway says under an older one does not count. 0: from before there were any.
ALTER TABLE spool ADD COLUMN credit_version BIGINT NOT NULL DEFAULT 0;
