-- Since when a channel of a contract has had something to settle: a restart must not make old money look new. Each contract
-- has a settler of its own, which keeps only its own rows.
-- chain_since stays until the next version, for a gateway of the version before that still runs.
CREATE TABLE chain_waiting (
    chain        BIGINT NOT NULL,
    contract     TEXT   NOT NULL,
    channel      TEXT   NOT NULL,
    since        BIGINT NOT NULL,
    PRIMARY KEY (chain, contract, channel)
);

INSERT INTO chain_waiting (chain, contract, channel, since)
SELECT p.chain_id, '0x' || lower(hex(p.escrow)), s.channel, s.since
FROM chain_since s JOIN payee_channels p ON s.channel = '0x' || lower(hex(p.id));
