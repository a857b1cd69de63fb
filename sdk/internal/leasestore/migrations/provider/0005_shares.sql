-- What of its payer's credit a lease may use that a node meters. The sum over a payer's leases never passes one credit: a share
-- is here before its node hears of more, and its node has heard of less before it is here.
CREATE TABLE credit_shares (
    lease   TEXT NOT NULL PRIMARY KEY,
    channel TEXT NOT NULL,
    payer   TEXT NOT NULL,              -- 0x, 40 hex digits
    amount  TEXT NOT NULL               -- base units, decimal
);
CREATE INDEX credit_shares_by_payer ON credit_shares (payer);
