-- What the endpoints said of a version: 'taken' once one took it, which stays, or how all that answered refused it. Empty where nothing
-- is known, as of what was broadcast before this column was there.
ALTER TABLE chain_attempt ADD COLUMN answer TEXT NOT NULL DEFAULT '';
