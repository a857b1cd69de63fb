-- Proofs that a payee signed two different records of one number: nothing else that a provider sends takes their place.
CREATE TABLE rental_proofs (
    channel    TEXT   NOT NULL,  -- 0x, 64 hex digits
    lease      TEXT   NOT NULL,
    sequence   BIGINT NOT NULL,
    document   TEXT   NOT NULL,  -- JSON of an EquivocationProof; the records without what their hashes stand for
    at         BIGINT NOT NULL,  -- unix milliseconds
    PRIMARY KEY (channel, lease, sequence)
);
