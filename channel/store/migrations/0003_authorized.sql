-- What was signed to bring into a channel and may still arrive counts in the caps.

ALTER TABLE payer_channels ADD COLUMN authorized BLOB NOT NULL DEFAULT X'00000000000000000000000000000000' CHECK (length(authorized) = 16);
