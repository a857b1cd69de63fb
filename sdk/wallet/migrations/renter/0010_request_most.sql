-- For how long the renter lets a request run: what ran when the process died ended then at the latest. 0: as long as it takes.
ALTER TABLE rental_requests ADD COLUMN most BIGINT NOT NULL DEFAULT 0;
