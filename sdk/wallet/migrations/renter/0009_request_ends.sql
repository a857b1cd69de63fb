-- How a request ended, by the renter's own clock: no end means that it ran when the process died.
ALTER TABLE rental_requests ADD COLUMN wall BIGINT NOT NULL DEFAULT 0;
ALTER TABLE rental_requests ADD COLUMN ended BIGINT;
ALTER TABLE rental_requests ADD COLUMN failed BIGINT NOT NULL DEFAULT 0; -- 1: it broke off, 2: it was answered with an error
