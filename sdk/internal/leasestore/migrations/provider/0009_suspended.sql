-- When the lease was suspended for the reason that it has, unix nanoseconds: a suspension ends its lease after a while, however
-- often programs start meanwhile. 0: it is not suspended.
ALTER TABLE leases ADD COLUMN suspended_at BIGINT NOT NULL DEFAULT 0;
