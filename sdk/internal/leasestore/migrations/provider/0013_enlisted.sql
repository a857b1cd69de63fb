-- The nodes that begin leases, whose devices are of one kind: an offer has one price for all. A gateway names those that it has
-- again and again; one that none names any more is forgotten. Times are milliseconds since 1970.
CREATE TABLE enlisted_nodes (
    node         TEXT    NOT NULL PRIMARY KEY,
    model        TEXT    NOT NULL,
    memory_bytes BIGINT  NOT NULL,
    mig          BOOLEAN NOT NULL,
    seen         BIGINT  NOT NULL
);
