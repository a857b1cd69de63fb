-- What is not asked for any more of what was charged on channels that are closed: a payer's credit does not lack it. The channels
-- themselves stay as they ended.
CREATE TABLE written_off (
    channel TEXT   NOT NULL PRIMARY KEY,
    payer   TEXT   NOT NULL,
    amount  TEXT   NOT NULL,              -- base units charged and never paid, decimal
    at      BIGINT NOT NULL               -- unix seconds, of the newest part of it
);
CREATE INDEX written_off_by_payer ON written_off (payer);
