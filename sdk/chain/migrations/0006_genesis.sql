-- Which chain of an id the database is from: what its first block is, in hex. Test chains that are started anew keep the id.
CREATE TABLE chain_genesis (
    chain        BIGINT NOT NULL PRIMARY KEY,
    genesis      TEXT   NOT NULL
);
