-- Which gateway runs a lease, where several share the database. Every write to a
-- lease names its term, and another term means that it has another owner.
ALTER TABLE leases ADD COLUMN owner    TEXT   NOT NULL DEFAULT '';
ALTER TABLE leases ADD COLUMN term     BIGINT NOT NULL DEFAULT 0;
ALTER TABLE leases ADD COLUMN sequence BIGINT NOT NULL DEFAULT 0;   -- of the newest record
ALTER TABLE leases ADD COLUMN stream   BIGINT NOT NULL DEFAULT 0;   -- the newest one may write
ALTER TABLE leases ADD COLUMN command  TEXT   NOT NULL DEFAULT '';  -- why another gateway wants it ended
ALTER TABLE leases ADD COLUMN held     BIGINT NOT NULL DEFAULT 0;   -- 1: ended, and its devices not taken back yet

-- Two gateways never run two leases on one channel.
CREATE UNIQUE INDEX leases_running ON leases (channel) WHERE state <> 'ended';
CREATE INDEX leases_by_end ON leases (ended_at);

-- The gateways that live: one that stops saying so loses its leases to the
-- others. Times here are the server's: milliseconds since 1970.
CREATE TABLE gateways (
    id      TEXT   NOT NULL PRIMARY KEY,
    expires BIGINT NOT NULL
);

-- Who may write what only one may, and since how many changes.
CREATE TABLE leaders (
    name  TEXT   NOT NULL PRIMARY KEY,
    owner TEXT   NOT NULL,
    term  BIGINT NOT NULL
);

-- The devices in leases: gateways on one host rent out the same ones.
CREATE TABLE lease_devices (
    device TEXT NOT NULL PRIMARY KEY,
    lease  TEXT NOT NULL REFERENCES leases (id)
);
CREATE INDEX lease_devices_by_lease ON lease_devices (lease);

-- What one gateway is about to send to the chain, so that no other one does too.
CREATE TABLE claims (
    name    TEXT   NOT NULL PRIMARY KEY,
    owner   TEXT   NOT NULL,
    expires BIGINT NOT NULL
);
