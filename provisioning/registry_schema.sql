-- The registry of devices and runs, version 1 of its format; rollouts/schema.sql is what version 2 adds.
-- Times are seconds since the epoch, UTC.

CREATE TABLE identity (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE devices (
    device_id        TEXT PRIMARY KEY,
    model            TEXT NOT NULL,
    firmware_version TEXT NOT NULL,
    tags             TEXT NOT NULL,           -- JSON object
    registered_at    REAL NOT NULL,
    online           INTEGER NOT NULL,
    state            TEXT NOT NULL,
    run_id           TEXT,                    -- the latest run that claimed it
    attempt          INTEGER NOT NULL,        -- 0 before the first
    progress         REAL,                    -- of the download, 0 to 1
    error            TEXT,
    updated_at       REAL NOT NULL
) WITHOUT ROWID;

CREATE INDEX devices_by_state ON devices (state);
CREATE INDEX devices_by_run ON devices (run_id, state);

CREATE TABLE runs (
    run_id     TEXT PRIMARY KEY,
    started_at REAL NOT NULL,
    ended_at   REAL,
    status     TEXT NOT NULL,
    devices    INTEGER NOT NULL,
    options    TEXT NOT NULL                  -- JSON object
) WITHOUT ROWID;

CREATE INDEX runs_by_start ON runs (started_at);

-- How a device ended in a run; a device may end in many runs.
CREATE TABLE outcomes (
    run_id        TEXT NOT NULL,
    device_id     TEXT NOT NULL,
    state         TEXT NOT NULL,
    attempts      INTEGER NOT NULL,
    error         TEXT,
    ended_at      REAL NOT NULL,
    device_s      REAL,
    packaging_s   REAL,
    notifying_s   REAL,
    downloading_s REAL,
    activating_s  REAL,
    PRIMARY KEY (run_id, device_id)
) WITHOUT ROWID;

CREATE INDEX outcomes_by_state ON outcomes (run_id, state);
CREATE INDEX outcomes_failed ON outcomes (run_id, ended_at) WHERE state <> 'provisioned';
