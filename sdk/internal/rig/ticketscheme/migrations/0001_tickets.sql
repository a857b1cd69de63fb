-- The leases that tickets pay: those of a session are on channels of the same contract.
CREATE TABLE tickets (lease TEXT NOT NULL PRIMARY KEY);
