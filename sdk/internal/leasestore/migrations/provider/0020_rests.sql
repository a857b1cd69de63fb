-- Devices that could not be metered, for the other gateways of their host and for the next process. Times are milliseconds, and count
-- from when the row was written, which is expires - ttl by the clock of who keeps the database.
CREATE TABLE device_rests (
    device  TEXT   NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,  -- grows with each write, also over one that was deleted
    span    BIGINT NOT NULL,  -- of its rest, which is longer each time that it fails
    rest    BIGINT NOT NULL,  -- for how long it goes into no new lease
    healed  BIGINT NOT NULL,  -- for how long it was metered again by then; -1: it is not
    expires BIGINT NOT NULL,  -- the row is forgotten
    ttl     BIGINT NOT NULL
);
