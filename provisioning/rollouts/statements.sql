-- Statements of the rollouts, each under its name.

-- name: create
INSERT INTO rollouts (
    rollout_id, plan, retry_of, created_at, state, wave, generation, approved, skipped_to, forgiven, taken, next_at
) VALUES (?, ?, ?, ?, 'scheduled', 0, 0, '[]', 0, '{}', 0, 0.0);

-- name: create_run
INSERT INTO runs (run_id, started_at, status, devices, options, release) VALUES (?, ?, 'running', ?, ?, ?);

-- name: candidates
-- ?1 states, ?2 models or null, ?3 firmware versions or null, ?4 tags or null. In order of id.
SELECT device_id, state
FROM devices
WHERE
    state IN (SELECT value FROM json_each(?1))
    AND (?2 IS NULL OR model IN (SELECT value FROM json_each(?2)))
    AND (?3 IS NULL OR firmware_version IN (SELECT value FROM json_each(?3)))
    AND (?4 IS NULL OR NOT EXISTS (
        SELECT 1 FROM json_each(?4) AS wanted
        WHERE (devices.tags -> ('$."' || wanted.key || '"')) IS NOT json_quote(wanted.value)
    ))
ORDER BY device_id;

-- name: named
SELECT device_id, state FROM devices WHERE device_id IN (SELECT value FROM json_each(?)) ORDER BY device_id;

-- name: ended_in
-- The devices that ended in a run in one of some states.
SELECT device_id FROM outcomes
WHERE run_id = ? AND state IN (SELECT value FROM json_each(?)) ORDER BY device_id;

-- name: claim
-- [device_id, …]; ?1 the rollout, ?2 now.
UPDATE devices
SET state = 'queued', run_id = ?1, attempt = 0, progress = NULL, error = NULL, updated_at = ?2
WHERE
    device_id IN (SELECT value FROM json_each(?3))
    AND EXISTS (
        SELECT 1 FROM temp.transitions
        WHERE transitions.before = devices.state AND transitions.after = 'queued'
    );

-- name: claimed
SELECT device_id FROM devices
WHERE run_id = ? AND state = 'queued' AND device_id IN (SELECT value FROM json_each(?));

-- name: add_devices
-- [device_id, wave, place]
INSERT INTO rollout_devices (rollout_id, device_id, wave, place)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2 FROM json_each(?2)
WHERE true ON CONFLICT (rollout_id, device_id) DO NOTHING;

-- name: last_place
SELECT coalesce(max(place), 0) FROM rollout_devices WHERE rollout_id = ?;

-- name: rollout
SELECT
    rollout_id, plan, retry_of, created_at, started_at, state, reason, wave, generation, paused, approved,
    skipped_to, forgiven, cancel, cancelled, taken, next_at
FROM rollouts WHERE rollout_id = ?;

-- name: rollouts
SELECT
    rollout_id, plan, retry_of, created_at, started_at, state, reason, wave, generation, paused, approved,
    skipped_to, forgiven, cancel, cancelled, taken, next_at
FROM rollouts ORDER BY created_at DESC, rollout_id DESC LIMIT ?;

-- name: update
UPDATE rollouts SET
    plan = ?2, started_at = ?3, state = ?4, reason = ?5, wave = ?6, generation = ?7, paused = ?8, approved = ?9,
    skipped_to = ?10, forgiven = ?11, cancel = ?12, cancelled = ?13, taken = ?14, next_at = ?15
WHERE rollout_id = ?1;

-- name: taken_by
SELECT device_id FROM rollout_devices WHERE rollout_id = ? AND lane = ? AND seq = ?;

-- name: next_device
SELECT device_id FROM rollout_devices
WHERE rollout_id = ? AND wave = ? AND lane IS NULL AND ended IS NULL
ORDER BY place LIMIT 1;

-- name: take
UPDATE rollout_devices SET lane = ?3, seq = ?4 WHERE rollout_id = ?1 AND device_id = ?2;

-- name: wave_sizes
SELECT wave, count(*) FROM rollout_devices WHERE rollout_id = ? GROUP BY wave;

-- name: counts
SELECT wave, state, count, last_at FROM rollout_counts WHERE rollout_id = ?;

-- name: waiting
-- Not started and not ended, by wave.
SELECT wave, count(*) FROM rollout_devices
WHERE rollout_id = ? AND lane IS NULL AND ended IS NULL GROUP BY wave;

-- name: in_flight
SELECT device_id FROM rollout_devices
WHERE rollout_id = ? AND lane IS NOT NULL AND ended IS NULL ORDER BY place;

-- name: states
-- Of devices that are under way, by wave.
SELECT rollout_devices.wave, devices.state, count(*)
FROM rollout_devices
JOIN devices ON devices.device_id = rollout_devices.device_id AND devices.run_id = rollout_devices.rollout_id
WHERE rollout_devices.rollout_id = ? AND rollout_devices.lane IS NOT NULL AND rollout_devices.ended IS NULL
GROUP BY rollout_devices.wave, devices.state;

-- name: not_started
-- Those of [device_id, …] that nobody has started, with whom an exclusion ends.
SELECT device_id FROM rollout_devices
WHERE
    rollout_id = ? AND lane IS NULL AND ended IS NULL
    AND device_id IN (SELECT value FROM json_each(?));

-- name: all_not_started
SELECT device_id FROM rollout_devices WHERE rollout_id = ? AND lane IS NULL AND ended IS NULL;

-- name: reasons
-- Why devices were not provisioned: the same words but for figures are one reason.
SELECT state, error, count(*), min(device_id)
FROM outcomes
WHERE run_id = ? AND state <> 'provisioned'
GROUP BY state, error
ORDER BY count(*) DESC LIMIT ?;

-- name: ended_at
SELECT ended_at, status FROM runs WHERE run_id = ?;

-- name: write_log
INSERT INTO rollout_log (rollout_id, number, at, actor, what, detail)
SELECT ?1, coalesce(max(number), 0) + 1, ?2, ?3, ?4, ?5 FROM rollout_log WHERE rollout_id = ?1;

-- name: log
SELECT at, actor, what, detail FROM rollout_log WHERE rollout_id = ? ORDER BY number;

-- name: count_run
UPDATE runs SET devices = devices + ?2 WHERE run_id = ?1;

-- name: ids
SELECT device_id FROM rollout_devices WHERE rollout_id = ?;

-- name: end_run
UPDATE runs SET ended_at = ?2, status = ?3 WHERE run_id = ?1 AND ended_at IS NULL;

-- name: open_rollouts
SELECT rollout_id FROM rollouts WHERE state NOT IN ('completed', 'cancelled', 'failed') ORDER BY created_at;
