-- Leases that have ended and of which something is still to be taken back: few of many, looked for once a second.
CREATE INDEX leases_held ON leases (channel) WHERE held = 1;
