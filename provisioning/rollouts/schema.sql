-- Rollouts, in the registry's file: version 2 of its format. A rollout is a run with a plan; its devices' states
-- and outcomes are where those of all runs are. Times are seconds since the epoch, UTC.

CREATE TABLE rollouts (
    rollout_id TEXT PRIMARY KEY,              -- its run's id
    plan       TEXT NOT NULL,                 -- JSON object, as it is now
    retry_of   TEXT,
    created_at REAL NOT NULL,
    started_at REAL,                          -- when its first device may have been started
    state      TEXT NOT NULL,
    reason     TEXT,                          -- why it is in that state, for people
    wave       INTEGER NOT NULL,              -- the current one, from 1; 0 before the first
    generation INTEGER NOT NULL,              -- one more whenever lanes have to ask anew what they may do
    paused     TEXT,                          -- why it is paused; null: it is not
    approved   TEXT NOT NULL,                 -- JSON list of the waves after which it may go on
    skipped_to INTEGER NOT NULL,              -- up to this wave whatever is before may be skipped
    forgiven   TEXT NOT NULL,                 -- JSON object: how many had ended how when it was resumed
    cancel     TEXT,                          -- finish or force: what was asked for
    cancelled  TEXT,                          -- finish or force: what was carried out
    taken      INTEGER NOT NULL,              -- devices that were started
    next_at    REAL NOT NULL                  -- when the next device may be started, by its pace
) WITHOUT ROWID;

CREATE INDEX rollouts_by_creation ON rollouts (created_at);

CREATE TABLE rollout_devices (
    rollout_id TEXT NOT NULL,
    device_id  TEXT NOT NULL,
    wave       INTEGER NOT NULL,
    place      INTEGER NOT NULL,              -- in order of which they are started
    lane       TEXT,                          -- who started it, and as which of its devices; null: nobody yet
    seq        INTEGER,
    ended      TEXT,                          -- the state of its outcome
    PRIMARY KEY (rollout_id, device_id)
) WITHOUT ROWID;

CREATE INDEX rollout_devices_next ON rollout_devices (rollout_id, wave, place)
WHERE lane IS NULL AND ended IS NULL;
CREATE UNIQUE INDEX rollout_devices_by_lane ON rollout_devices (rollout_id, lane, seq) WHERE lane IS NOT NULL;

-- How many of a wave have ended how: counted as outcomes are written, since each start of a device asks.
CREATE TABLE rollout_counts (
    rollout_id TEXT NOT NULL,
    wave       INTEGER NOT NULL,
    state      TEXT NOT NULL,
    count      INTEGER NOT NULL,
    last_at    REAL NOT NULL,                 -- when the last of them ended
    PRIMARY KEY (rollout_id, wave, state)
) WITHOUT ROWID;

CREATE TRIGGER outcome_of_rollout AFTER INSERT ON outcomes
WHEN EXISTS (SELECT 1 FROM rollout_devices WHERE rollout_id = new.run_id AND device_id = new.device_id)
BEGIN
    INSERT INTO rollout_counts (rollout_id, wave, state, count, last_at)
    SELECT rollout_id, wave, new.state, 1, new.ended_at
    FROM rollout_devices
    WHERE rollout_id = new.run_id AND device_id = new.device_id AND ended IS NULL
    ON CONFLICT (rollout_id, wave, state) DO UPDATE SET
        count = count + 1, last_at = max(last_at, excluded.last_at);
    UPDATE rollout_devices SET ended = new.state
    WHERE rollout_id = new.run_id AND device_id = new.device_id AND ended IS NULL;
END;

-- A run that ends otherwise than its rollout decides (the orchestration was terminated, or broke) ends the rollout
-- too: nobody else would. What the rollout itself decides is written after this.
CREATE TRIGGER end_of_rollout AFTER UPDATE OF ended_at ON runs
WHEN old.ended_at IS NULL AND new.ended_at IS NOT NULL
BEGIN
    UPDATE rollouts SET
        state = CASE new.status WHEN 'terminated' THEN 'cancelled' ELSE new.status END,
        reason = 'Its orchestration has ended by itself (' || new.status || '); `muster rollout retry` goes on.'
    WHERE rollout_id = new.run_id AND state NOT IN ('completed', 'cancelled', 'failed');
END;

-- What operators did, and what became of it.
CREATE TABLE rollout_log (
    rollout_id TEXT NOT NULL,
    number     INTEGER NOT NULL,
    at         REAL NOT NULL,
    actor      TEXT NOT NULL,
    what       TEXT NOT NULL,
    detail     TEXT,
    PRIMARY KEY (rollout_id, number)
) WITHOUT ROWID;
