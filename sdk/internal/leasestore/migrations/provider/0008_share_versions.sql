-- What a lease's node was told last of its share, and the version of that: a node takes no older one. '': the amount.
ALTER TABLE credit_shares ADD COLUMN told    TEXT   NOT NULL DEFAULT '';
ALTER TABLE credit_shares ADD COLUMN version BIGINT NOT NULL DEFAULT 0;
