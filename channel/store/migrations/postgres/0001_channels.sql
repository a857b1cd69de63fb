-- Amounts are 16 bytes, big-endian: the order of the bytes is the order of the
-- numbers. Ids, addresses and salts are their bytes. Times are unix nanoseconds,
-- but for close_requested_at, which is the chain's: unix seconds.

CREATE TABLE payee_channels (
    id                 BYTEA    PRIMARY KEY,
    chain_id           BIGINT   NOT NULL,
    escrow             BYTEA     NOT NULL,
    payer              BYTEA     NOT NULL,
    payee              BYTEA     NOT NULL,
    token              BYTEA     NOT NULL,
    salt               BYTEA     NOT NULL,
    authorized_signer  BYTEA     NOT NULL,
    deposit            BYTEA     NOT NULL CHECK (length(deposit) = 16),
    settled            BYTEA     NOT NULL CHECK (length(settled) = 16),
    accepted           BYTEA     NOT NULL CHECK (length(accepted) = 16),
    spent              BYTEA     NOT NULL CHECK (length(spent) = 16),
    signature          BYTEA     NOT NULL,
    status             SMALLINT NOT NULL,
    close_requested_at BIGINT   NOT NULL,
    updated_at         BIGINT   NOT NULL
);

CREATE TABLE payer_channels (
    id                 BYTEA    PRIMARY KEY,
    chain_id           BIGINT   NOT NULL,
    escrow             BYTEA     NOT NULL,
    payer              BYTEA     NOT NULL,
    payee              BYTEA     NOT NULL,
    token              BYTEA     NOT NULL,
    salt               BYTEA     NOT NULL,
    authorized_signer  BYTEA     NOT NULL,
    deposit            BYTEA     NOT NULL CHECK (length(deposit) = 16),
    settled            BYTEA     NOT NULL CHECK (length(settled) = 16),
    signed             BYTEA     NOT NULL CHECK (length(signed) = 16),
    signature          BYTEA     NOT NULL,
    status             SMALLINT NOT NULL,
    closed             BOOLEAN  NOT NULL,
    close_requested_at BIGINT   NOT NULL,
    updated_at         BIGINT   NOT NULL
);

-- What a payer signed away of one token: scope is a payee's address or a UTC day.
CREATE TABLE payer_budgets (
    token  BYTEA NOT NULL,
    scope  TEXT NOT NULL,
    amount BYTEA NOT NULL CHECK (length(amount) = 16),
    PRIMARY KEY (token, scope)
);
