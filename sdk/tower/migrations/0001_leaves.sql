-- Payers who want out of a channel: their signed request, which is relayed, and then the withdrawal. A row is here before
-- anything is sent for it.
CREATE TABLE tower_leaves (
    channel  TEXT   NOT NULL PRIMARY KEY,  -- 0x, 64 hex digits
    request  TEXT   NOT NULL,              -- JSON of wire.LeaveRequest
    asked_at BIGINT NOT NULL,              -- unix milliseconds
    done     BIGINT NOT NULL               -- 1: nothing is left to do
);
CREATE INDEX tower_leaves_open ON tower_leaves (done);
