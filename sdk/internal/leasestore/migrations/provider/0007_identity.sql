-- Whose database it is, where several gateways share it: one row, of the first that came. A gateway of another provider
-- is refused.
CREATE TABLE identity (
    one    INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    chain  BIGINT  NOT NULL,
    escrow TEXT    NOT NULL,
    token  TEXT    NOT NULL,
    payee  TEXT    NOT NULL
);
