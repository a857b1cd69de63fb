-- Whom a channel pays and where: a payee or a site that was caught is not paid again from another channel, and one that
-- has a channel with money in it gets no second one.
ALTER TABLE x402_slates ADD COLUMN payee TEXT NOT NULL DEFAULT '';       -- 0x, 40 hex digits in lower case
ALTER TABLE x402_slates ADD COLUMN version BIGINT NOT NULL DEFAULT 1;    -- counts writes: who writes must have read the newest
UPDATE x402_slates SET payee = coalesce(
    (SELECT '0x' || lower(hex(payee)) FROM payer_channels WHERE '0x' || lower(hex(id)) = x402_slates.channel), '');
CREATE INDEX x402_slates_by_payee ON x402_slates (payee);

CREATE TABLE x402_sites (
    site    TEXT NOT NULL,  -- scheme and host, lower case, with a port that is not the scheme's own
    channel TEXT NOT NULL REFERENCES x402_slates (channel),
    PRIMARY KEY (site, channel)
);
INSERT INTO x402_sites (site, channel)
    SELECT lower(CASE instr(rest, '/') WHEN 0 THEN scheme || rest ELSE scheme || substr(rest, 1, instr(rest, '/') - 1) END), channel
    FROM (SELECT channel, substr(url, 1, instr(url, '://') + 2) AS scheme, substr(url, instr(url, '://') + 3) AS rest FROM x402_slates);
