-- How many decimals a token has: all caps and amounts are read by it, and no endpoint changes it.
CREATE TABLE renter_tokens (
    chain    TEXT    NOT NULL,  -- id, decimal
    token    TEXT    NOT NULL,  -- 0x, 40 hex digits in mixed case
    decimals INTEGER NOT NULL,
    PRIMARY KEY (chain, token)
);
