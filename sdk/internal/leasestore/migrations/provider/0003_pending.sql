-- The next record, before it is signed: whoever runs the lease after a crash or a change of owner signs this one, and
-- no other of its number. JSON of sdk.pendingRecord; '' if there is none.
ALTER TABLE leases ADD COLUMN pending TEXT NOT NULL DEFAULT '';

-- Records that renters showed and this database did not have: it was restored from a backup after they were signed.
CREATE TABLE shown_records (
    lease    TEXT   NOT NULL,
    sequence BIGINT NOT NULL,
    channel  TEXT   NOT NULL,
    record   TEXT   NOT NULL,  -- JSON of the record and its signature, which is ours
    shown_at BIGINT NOT NULL,  -- unix seconds
    PRIMARY KEY (lease, sequence)
);
