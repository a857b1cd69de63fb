-- What counts against the budget of each UTC day: of all, and of each local key.
CREATE TABLE budget_days (
    day     TEXT NOT NULL,  -- YYYY-MM-DD
    key     TEXT NOT NULL,  -- a name, never a secret; empty: all together
    counted TEXT NOT NULL,  -- base units of the token and billionths, such as 20.833333334
    PRIMARY KEY (day, key)
) WITHOUT ROWID;
-- What was reserved, and what became of it. Its day and key never change.
CREATE TABLE budget_holds (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    day     TEXT   NOT NULL,
    key     TEXT   NOT NULL,
    state   TEXT   NOT NULL,              -- held, done, aside or final
    counted TEXT   NOT NULL,              -- what of budget_days is its
    billed  TEXT   NOT NULL DEFAULT '0',  -- by records
    channel TEXT   NOT NULL DEFAULT '',   -- 0x, 64 hex digits; empty: nothing was sent for it
    request BIGINT NOT NULL DEFAULT 0     -- the newest that was sent for it
);
CREATE INDEX budget_holds_by_channel ON budget_holds (channel, state);
CREATE INDEX budget_holds_by_state ON budget_holds (state, day);
-- Which reservation each request was sent for, from before it was.
CREATE TABLE budget_requests (
    channel TEXT    NOT NULL,
    request BIGINT  NOT NULL,
    hold    INTEGER NOT NULL,
    PRIMARY KEY (channel, request)
) WITHOUT ROWID;
CREATE INDEX budget_requests_by_hold ON budget_requests (hold);
-- How far the records of each channel were read.
CREATE TABLE budget_records (
    channel  TEXT   NOT NULL,
    lease    TEXT   NOT NULL,  -- 0x, 64 hex digits
    sequence BIGINT NOT NULL,
    unnamed  BIGINT NOT NULL,  -- 1: some billed requests that they did not name
    PRIMARY KEY (channel, lease)
) WITHOUT ROWID;
