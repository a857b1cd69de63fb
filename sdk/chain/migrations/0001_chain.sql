-- Transactions of this program's own keys. A row is here before its transaction is broadcast, and says what became of it.
-- Hashes, addresses, calldata: lower-case hex with 0x. Money: decimal text, in wei. Times: unix milliseconds.
CREATE TABLE chain_tx (
    id           TEXT   NOT NULL PRIMARY KEY,
    chain        BIGINT NOT NULL,
    sender       TEXT   NOT NULL,
    nonce        BIGINT NOT NULL,
    kind         TEXT   NOT NULL,
    recipient    TEXT   NOT NULL,
    data         TEXT   NOT NULL,
    gas          BIGINT NOT NULL,
    state        TEXT   NOT NULL CHECK (state IN ('pending', 'mined', 'final')),
    hash         TEXT   NOT NULL,
    block        BIGINT NOT NULL,
    block_hash   TEXT   NOT NULL,
    succeeded    BIGINT NOT NULL,
    cost         TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    UNIQUE (chain, sender, nonce)
);

CREATE INDEX chain_tx_state ON chain_tx (chain, sender, state, nonce);

-- Every version of a transaction that may be out there: the first, and each with a higher fee. Any one may be mined.
CREATE TABLE chain_attempt (
    hash         TEXT   NOT NULL PRIMARY KEY,
    tx           TEXT   NOT NULL REFERENCES chain_tx (id),
    number       BIGINT NOT NULL,
    raw          TEXT   NOT NULL,
    created_at   BIGINT NOT NULL,
    sent_at      BIGINT NOT NULL
);

CREATE INDEX chain_attempt_tx ON chain_attempt (tx, number);

-- Which channels a transaction is about.
CREATE TABLE chain_tx_channel (
    channel      TEXT   NOT NULL,
    tx           TEXT   NOT NULL REFERENCES chain_tx (id),
    PRIMARY KEY (channel, tx)
);

-- Gas paid for final transactions, in wei.
CREATE TABLE chain_gas (
    chain        BIGINT NOT NULL,
    sender       TEXT   NOT NULL,
    wei          TEXT   NOT NULL,
    PRIMARY KEY (chain, sender)
);

-- The newest blocks that a watcher has acted on, by number, to notice after a restart that the chain changed its mind.
CREATE TABLE chain_block (
    chain        BIGINT NOT NULL,
    escrow       TEXT   NOT NULL,
    number       BIGINT NOT NULL,
    hash         TEXT   NOT NULL,
    PRIMARY KEY (chain, escrow, number)
);

-- Since when a channel has had something to settle: a restart must not make old money look new.
CREATE TABLE chain_since (
    channel      TEXT   NOT NULL PRIMARY KEY,
    since        BIGINT NOT NULL
);
