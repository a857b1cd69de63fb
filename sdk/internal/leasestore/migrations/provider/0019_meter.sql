-- Whose key signs the records of all gateways: '' in a database of before, until the next one comes.
ALTER TABLE identity ADD COLUMN meter TEXT NOT NULL DEFAULT '';
