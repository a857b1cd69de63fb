-- Requests of leases that share GPUs, from before they are sent until a record names them.
CREATE TABLE rental_requests (
	channel TEXT NOT NULL,
	id INTEGER NOT NULL,
	started INTEGER NOT NULL,
	epoch INTEGER NOT NULL,
	PRIMARY KEY (channel, id)
);
