-- Deposits count in the caps until they are back: channels of rentals that ended hold none. 1 is pending, 4 finalized.
UPDATE payer_channels SET status = 4
    WHERE status = 1 AND EXISTS (SELECT 1 FROM rentals WHERE state = 'finished' AND channel = '0x' || lower(hex(payer_channels.id)));
