-- What notes changes in the registry's file while somebody watches. All of it is of one connection, and goes with it.

-- part: begin
CREATE TEMP TABLE IF NOT EXISTS changed_devices (device_id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS changed_runs (run_id TEXT PRIMARY KEY) WITHOUT ROWID;

CREATE TEMP TRIGGER IF NOT EXISTS device_was_added AFTER INSERT ON main.devices
BEGIN
    INSERT INTO changed_devices (device_id) VALUES (new.device_id) ON CONFLICT DO NOTHING;
END;

CREATE TEMP TRIGGER IF NOT EXISTS device_was_changed
AFTER UPDATE OF state, run_id, attempt, progress, online, error ON main.devices
BEGIN
    INSERT INTO changed_devices (device_id) VALUES (new.device_id) ON CONFLICT DO NOTHING;
END;

CREATE TEMP TRIGGER IF NOT EXISTS run_of_device_was_changed AFTER UPDATE OF state, run_id ON main.devices
WHEN old.state <> new.state OR old.run_id IS NOT new.run_id
BEGIN
    INSERT INTO changed_runs (run_id)
    SELECT run_id FROM (SELECT old.run_id AS run_id UNION SELECT new.run_id) WHERE run_id IS NOT NULL
    ON CONFLICT DO NOTHING;
END;

CREATE TEMP TRIGGER IF NOT EXISTS outcome_was_added AFTER INSERT ON main.outcomes
BEGIN
    INSERT INTO changed_runs (run_id) VALUES (new.run_id) ON CONFLICT DO NOTHING;
END;

CREATE TEMP TRIGGER IF NOT EXISTS run_was_added AFTER INSERT ON main.runs
BEGIN
    INSERT INTO changed_runs (run_id) VALUES (new.run_id) ON CONFLICT DO NOTHING;
END;

CREATE TEMP TRIGGER IF NOT EXISTS run_was_changed AFTER UPDATE ON main.runs
BEGIN
    INSERT INTO changed_runs (run_id) VALUES (new.run_id) ON CONFLICT DO NOTHING;
END;

CREATE TEMP TRIGGER IF NOT EXISTS rollout_was_added AFTER INSERT ON main.rollouts
BEGIN
    INSERT INTO changed_runs (run_id) VALUES (new.rollout_id) ON CONFLICT DO NOTHING;
END;

CREATE TEMP TRIGGER IF NOT EXISTS rollout_was_changed AFTER UPDATE ON main.rollouts
BEGIN
    INSERT INTO changed_runs (run_id) VALUES (new.rollout_id) ON CONFLICT DO NOTHING;
END;

-- part: end
DROP TRIGGER IF EXISTS temp.device_was_added;
DROP TRIGGER IF EXISTS temp.device_was_changed;
DROP TRIGGER IF EXISTS temp.run_of_device_was_changed;
DROP TRIGGER IF EXISTS temp.outcome_was_added;
DROP TRIGGER IF EXISTS temp.run_was_added;
DROP TRIGGER IF EXISTS temp.run_was_changed;
DROP TRIGGER IF EXISTS temp.rollout_was_added;
DROP TRIGGER IF EXISTS temp.rollout_was_changed;
DROP TABLE IF EXISTS temp.changed_devices;
DROP TABLE IF EXISTS temp.changed_runs;

-- part: devices
SELECT
    device_id,
    run_id,
    json_array(
        device_id, state, run_id, attempt, iif(progress IS NULL, NULL, round(progress, 3)), online, error
    )
FROM temp.changed_devices
JOIN main.devices USING (device_id);

-- part: runs
SELECT run_id FROM temp.changed_runs;

-- part: forget devices
DELETE FROM temp.changed_devices;

-- part: forget runs
DELETE FROM temp.changed_runs;
