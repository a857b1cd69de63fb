-- Whose key signs a lease's records where its offer names none: a node's own. It is written with what was allocated, and never
-- after.
ALTER TABLE leases ADD COLUMN meter_key TEXT NOT NULL DEFAULT '';  -- address; '': the offer names it
ALTER TABLE leases ADD COLUMN binding TEXT NOT NULL DEFAULT '';    -- JSON of wire.MeterBinding, signed by the payee; '' at a node
