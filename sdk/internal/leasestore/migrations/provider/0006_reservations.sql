-- GPUs that gateways keep for leases whose deposits are on their way to the chain, one row a request.
CREATE TABLE reservations (
    id      TEXT    NOT NULL PRIMARY KEY,
    pool    TEXT    NOT NULL,  -- of the gateways that rent out the same devices
    channel TEXT    NOT NULL,
    gpus    INTEGER NOT NULL,  -- beside those that the channel's lease gives back
    expires BIGINT  NOT NULL   -- milliseconds since 1970, by the server's clock: a gateway that dies keeps nothing for ever
);
CREATE INDEX reservations_by_pool ON reservations (pool);
