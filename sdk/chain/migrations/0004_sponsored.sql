-- Whose channels this program sends transactions for, to keep what one payer costs within a budget. A row is here before the
-- first of them is sent.
CREATE TABLE chain_sponsored (
    channel      TEXT   NOT NULL PRIMARY KEY,
    payer        TEXT   NOT NULL
);

CREATE INDEX chain_sponsored_payer ON chain_sponsored (payer);
