-- Rollouts beside others and over time: the next version of the registry's format after that of schema.sql. Devices that
-- another run has wait for their turn or share its outcome, devices that register later join, and lanes are counted.

-- Plans in a table of their own: one that names a hundred thousand devices is not written with each start of one.
CREATE TABLE rollout_plans (
    rollout_id TEXT PRIMARY KEY,
    plan       TEXT NOT NULL                  -- JSON object, as it is now
) WITHOUT ROWID;

INSERT INTO rollout_plans (rollout_id, plan) SELECT rollout_id, plan FROM rollouts;

ALTER TABLE rollouts DROP COLUMN plan;
ALTER TABLE rollouts ADD COLUMN plan_version INTEGER NOT NULL DEFAULT 1;      -- one more with each change of the plan
ALTER TABLE rollouts ADD COLUMN continuous INTEGER NOT NULL DEFAULT 0;        -- 1: devices that register later join
ALTER TABLE rollouts ADD COLUMN overlaps INTEGER NOT NULL DEFAULT 0;          -- 1: another run has or had devices of it
ALTER TABLE rollouts ADD COLUMN held_states TEXT;  -- JSON list: in which of them a device may be after its wait; null: any
ALTER TABLE rollouts ADD COLUMN lanes INTEGER NOT NULL DEFAULT 0;             -- started in this generation

ALTER TABLE rollout_devices ADD COLUMN held TEXT;     -- wait: for its turn; join: for the other's outcome; null: neither
ALTER TABLE rollout_devices ADD COLUMN held_by TEXT;  -- the run that has it

DROP INDEX rollout_devices_next;
CREATE INDEX rollout_devices_next ON rollout_devices (rollout_id, wave, place)
WHERE lane IS NULL AND ended IS NULL AND held IS NULL;
CREATE INDEX rollout_devices_held ON rollout_devices (rollout_id, wave, held_by, held)
WHERE held IS NOT NULL AND ended IS NULL;
CREATE INDEX rollout_devices_held_device ON rollout_devices (device_id, held)
WHERE held IS NOT NULL AND ended IS NULL;
CREATE INDEX rollout_devices_in_flight ON rollout_devices (rollout_id, place)
WHERE lane IS NOT NULL AND ended IS NULL;

-- Lanes of the generation under way that have stopped: the others live, and may take devices.
CREATE TABLE rollout_lanes (
    rollout_id TEXT NOT NULL,
    lane       TEXT NOT NULL,
    why        TEXT NOT NULL,
    PRIMARY KEY (rollout_id, lane)
) WITHOUT ROWID;

-- A device is free: whoever has waited longest gets it, in the same moment, so that nobody can come between.
CREATE TRIGGER device_is_free AFTER UPDATE OF state ON devices
WHEN
    new.state IN ('provisioned', 'failed', 'timed_out', 'rejected', 'cancelled')
    AND EXISTS (
        SELECT 1 FROM rollout_devices WHERE device_id = new.device_id AND held = 'wait' AND ended IS NULL
    )
BEGIN
    INSERT INTO outcomes (run_id, device_id, state, attempts, error, ended_at)
    SELECT
        waiting.rollout_id,
        waiting.device_id,
        'cancelled',
        0,
        'not started: after ' || waiting.held_by || ' it is ' || new.state || ', which is none of the states of the targets',
        new.updated_at
    FROM rollout_devices AS waiting
    JOIN rollouts ON rollouts.rollout_id = waiting.rollout_id
    WHERE
        waiting.device_id = new.device_id
        AND waiting.held = 'wait'
        AND waiting.ended IS NULL
        AND rollouts.held_states IS NOT NULL
        AND new.state NOT IN (SELECT value FROM json_each(rollouts.held_states));

    UPDATE devices SET
        state = 'queued',
        attempt = 0,
        progress = NULL,
        error = NULL,
        run_id = (
            SELECT waiting.rollout_id
            FROM rollout_devices AS waiting
            JOIN rollouts ON rollouts.rollout_id = waiting.rollout_id
            WHERE waiting.device_id = new.device_id AND waiting.held = 'wait' AND waiting.ended IS NULL
            ORDER BY rollouts.created_at, rollouts.rollout_id LIMIT 1
        )
    WHERE
        device_id = new.device_id
        AND EXISTS (
            SELECT 1 FROM rollout_devices WHERE device_id = new.device_id AND held = 'wait' AND ended IS NULL
        );

    UPDATE rollout_devices SET held = NULL, held_by = NULL
    WHERE
        device_id = new.device_id
        AND held = 'wait'
        AND ended IS NULL
        AND rollout_id = (SELECT run_id FROM devices WHERE device_id = new.device_id AND state = 'queued');

    UPDATE rollout_devices SET held_by = (SELECT run_id FROM devices WHERE device_id = new.device_id)
    WHERE device_id = new.device_id AND held = 'wait' AND ended IS NULL;
END;

-- A device has ended in the run that others have joined: so it has in those.
CREATE TRIGGER outcome_is_shared AFTER INSERT ON outcomes
WHEN EXISTS (
    SELECT 1 FROM rollout_devices WHERE device_id = new.device_id AND held = 'join' AND ended IS NULL
)
BEGIN
    INSERT INTO outcomes (
        run_id, device_id, state, attempts, error, ended_at,
        device_s, packaging_s, notifying_s, downloading_s, activating_s
    )
    SELECT
        joined.rollout_id, new.device_id, new.state, new.attempts, new.error, new.ended_at,
        new.device_s, new.packaging_s, new.notifying_s, new.downloading_s, new.activating_s
    FROM rollout_devices AS joined
    WHERE
        joined.device_id = new.device_id
        AND joined.held = 'join'
        AND joined.held_by = new.run_id
        AND joined.ended IS NULL
    ON CONFLICT (run_id, device_id) DO NOTHING;
END;

-- A rollout that has ended, as by its orchestration being terminated, gets no device any more.
CREATE TRIGGER rollout_waits_no_longer AFTER UPDATE OF state ON rollouts
WHEN
    new.state IN ('completed', 'cancelled', 'failed')
    AND old.state NOT IN ('completed', 'cancelled', 'failed')
BEGIN
    INSERT INTO outcomes (run_id, device_id, state, attempts, error, ended_at)
    SELECT
        rollout_id,
        device_id,
        'cancelled',
        0,
        'not started: the rollout ended while ' || held_by || ' had it',
        (julianday('now') - 2440587.5) * 86400.0
    FROM rollout_devices
    WHERE rollout_id = new.rollout_id AND held IS NOT NULL AND ended IS NULL;
END;
