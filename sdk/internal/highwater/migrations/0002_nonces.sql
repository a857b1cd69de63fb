-- The highest nonce that each key has signed a transaction for, or was about to, on each chain.
CREATE TABLE nonce_mark (
    key   TEXT   NOT NULL,  -- the sender's address, 0x and 40 hex digits
    chain BIGINT NOT NULL,
    nonce BIGINT NOT NULL,
    PRIMARY KEY (key, chain)
) WITHOUT ROWID;
