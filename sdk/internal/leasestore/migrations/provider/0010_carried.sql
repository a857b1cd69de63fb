-- What the leases before a lease used and were not charged for, when it began: in parts of which 3,600,000,000,000 make a base
-- unit, less than one. It is charged as soon as it makes one, or many short leases would cost nothing.
ALTER TABLE leases ADD COLUMN carried BIGINT NOT NULL DEFAULT 0;
