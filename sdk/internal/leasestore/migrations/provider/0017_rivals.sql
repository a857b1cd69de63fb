-- A node that listed a GPU while its owner listed it, too, does not get it when the owner has lost it for an hour, as one that it was moved
-- to does: but when they have not both listed it for a day, or when no gateway names the owner. Times are milliseconds since 1970.
CREATE TABLE enlisted_rivals (
    node   TEXT   NOT NULL,
    device TEXT   NOT NULL,
    owner  TEXT   NOT NULL,
    seen   BIGINT NOT NULL, -- when both listed it
    PRIMARY KEY (node, device)
);
CREATE INDEX enlisted_devices_node ON enlisted_devices (node);
CREATE INDEX enlisted_devices_seen ON enlisted_devices (seen);
