-- Whose a GPU is: of the node that listed it first, until that has not listed it for an hour, or no gateway names the node.
CREATE TABLE enlisted_devices (
    device TEXT   NOT NULL PRIMARY KEY,  -- UUID of a GPU or of a MIG slice
    node   TEXT   NOT NULL,
    seen   BIGINT NOT NULL               -- unix milliseconds
);
-- Simulated GPUs are a kind of their own.
ALTER TABLE enlisted_nodes ADD COLUMN simulated BOOLEAN NOT NULL DEFAULT FALSE;
