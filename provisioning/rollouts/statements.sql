-- Statements of the rollouts, each under its name.

-- name: create
INSERT INTO rollouts (
    rollout_id, retry_of, created_at, state, wave, generation, approved, skipped_to, forgiven, taken, next_at,
    plan_version, continuous, held_states, lanes
) VALUES (?, ?, ?, 'scheduled', 0, 0, '[]', 0, '{}', 0, 0.0, 1, ?, ?, 0);

-- name: write_plan
INSERT INTO rollout_plans (rollout_id, plan) VALUES (?, ?)
ON CONFLICT (rollout_id) DO UPDATE SET plan = excluded.plan;

-- name: plan
SELECT plan FROM rollout_plans WHERE rollout_id = ?;

-- name: create_run
INSERT INTO runs (run_id, started_at, status, devices, options, release) VALUES (?, ?, 'running', ?, ?, ?);

-- name: candidates
-- ?1 states, ?2 models or null, ?3 firmware versions or null, ?4 tags or null, ?5 null, or since when those must have
-- registered that are not new. In order of id.
SELECT device_id, state, run_id
FROM devices
WHERE
    state IN (SELECT value FROM json_each(?1))
    AND (?2 IS NULL OR model IN (SELECT value FROM json_each(?2)))
    AND (?3 IS NULL OR firmware_version IN (SELECT value FROM json_each(?3)))
    AND (?4 IS NULL OR NOT EXISTS (
        SELECT 1 FROM json_each(?4) AS wanted
        WHERE (devices.tags -> ('$."' || wanted.key || '"')) IS NOT json_quote(wanted.value)
    ))
    AND (?5 IS NULL OR state = 'new' OR registered_at >= ?5)
ORDER BY device_id;

-- name: candidates_among
-- As `candidates`, of ?6 [device_id, …] alone: they are looked up, however many others there are.
SELECT device_id, state, run_id
FROM devices
WHERE
    device_id IN (SELECT value FROM json_each(?6))
    AND state IN (SELECT value FROM json_each(?1))
    AND (?2 IS NULL OR model IN (SELECT value FROM json_each(?2)))
    AND (?3 IS NULL OR firmware_version IN (SELECT value FROM json_each(?3)))
    AND (?4 IS NULL OR NOT EXISTS (
        SELECT 1 FROM json_each(?4) AS wanted
        WHERE (devices.tags -> ('$."' || wanted.key || '"')) IS NOT json_quote(wanted.value)
    ))
    AND (?5 IS NULL OR state = 'new' OR registered_at >= ?5)
ORDER BY device_id;

-- name: named
SELECT device_id, state, run_id FROM devices
WHERE device_id IN (SELECT value FROM json_each(?)) ORDER BY device_id;

-- name: releases_of
SELECT run_id, release FROM runs WHERE run_id IN (SELECT value FROM json_each(?));

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
-- [device_id, wave, place, wait or join or null, held by]
INSERT INTO rollout_devices (rollout_id, device_id, wave, place, held, held_by)
SELECT ?1, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 FROM json_each(?2)
WHERE true ON CONFLICT (rollout_id, device_id) DO NOTHING;

-- name: last_place
-- Places are counted from 1, so that the last one is the number of devices.
SELECT devices FROM runs WHERE run_id = ?;

-- name: rollout
SELECT
    rollout_id, retry_of, created_at, started_at, state, reason, wave, generation, paused, approved,
    skipped_to, forgiven, cancel, cancelled, taken, next_at, plan_version, continuous, lanes
FROM rollouts WHERE rollout_id = ?;

-- name: rollouts
SELECT
    rollout_id, retry_of, created_at, started_at, state, reason, wave, generation, paused, approved,
    skipped_to, forgiven, cancel, cancelled, taken, next_at, plan_version, continuous, lanes
FROM rollouts ORDER BY created_at DESC, rollout_id DESC LIMIT ?;

-- name: known
-- Those of [run_id, …] that are rollouts.
SELECT rollout_id FROM rollouts WHERE rollout_id IN (SELECT value FROM json_each(?));

-- name: shown
-- Those that have not ended, and the latest few (?) that have.
SELECT rollout_id
FROM (
    SELECT rollout_id, created_at FROM rollouts WHERE state NOT IN ('completed', 'cancelled', 'failed')
    UNION
    SELECT rollout_id, created_at FROM (
        SELECT rollout_id, created_at FROM rollouts WHERE state IN ('completed', 'cancelled', 'failed')
        ORDER BY created_at DESC, rollout_id DESC LIMIT ?
    )
)
ORDER BY created_at DESC, rollout_id DESC;

-- name: update
UPDATE rollouts SET
    started_at = ?2, state = ?3, reason = ?4, wave = ?5, generation = ?6, paused = ?7, approved = ?8,
    skipped_to = ?9, forgiven = ?10, cancel = ?11, cancelled = ?12, taken = ?13, next_at = ?14,
    plan_version = ?15, lanes = ?16
WHERE rollout_id = ?1;

-- name: taken_by
SELECT device_id FROM rollout_devices WHERE rollout_id = ? AND lane = ? AND seq = ?;

-- name: next_device
SELECT device_id FROM rollout_devices
WHERE rollout_id = ? AND wave = ? AND lane IS NULL AND ended IS NULL AND held IS NULL
ORDER BY place LIMIT 1;

-- name: take
UPDATE rollout_devices SET lane = ?3, seq = ?4 WHERE rollout_id = ?1 AND device_id = ?2;

-- name: wave_sizes
SELECT wave, count(*) FROM rollout_devices WHERE rollout_id = ? GROUP BY wave;

-- name: in_flight_by_wave
SELECT wave, count(*) FROM rollout_devices INDEXED BY rollout_devices_in_flight
WHERE rollout_id = ? AND lane IS NOT NULL AND ended IS NULL GROUP BY wave;

-- name: counts
SELECT wave, state, count, last_at FROM rollout_counts WHERE rollout_id = ?;

-- name: waiting
-- Not started and not ended, by wave, and how many of them another run has.
SELECT wave, count(*), 0 FROM rollout_devices
WHERE rollout_id = ?1 AND lane IS NULL AND ended IS NULL AND held IS NULL GROUP BY wave
UNION ALL
SELECT wave, count(*), count(*) FROM rollout_devices
WHERE rollout_id = ?1 AND held IS NOT NULL AND ended IS NULL GROUP BY wave;

-- name: held
-- The runs that have devices of a rollout.
SELECT held_by, held, count(*) FROM rollout_devices INDEXED BY rollout_devices_held
WHERE rollout_id = ? AND held IS NOT NULL AND ended IS NULL GROUP BY held_by, held ORDER BY held_by;

-- name: in_flight
SELECT device_id FROM rollout_devices
WHERE rollout_id = ? AND lane IS NOT NULL AND ended IS NULL ORDER BY place;

-- name: states
-- Of devices that are under way, by wave.
SELECT rollout_devices.wave, devices.state, count(*)
FROM rollout_devices INDEXED BY rollout_devices_in_flight
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

-- name: last_log
SELECT number, what, detail FROM rollout_log WHERE rollout_id = ? ORDER BY number DESC LIMIT 1;

-- name: forget_log
DELETE FROM rollout_log WHERE rollout_id = ? AND number = ?;

-- name: log
SELECT at, actor, what, detail FROM rollout_log WHERE rollout_id = ? ORDER BY number;

-- name: count_run
UPDATE runs SET devices = devices + ?2 WHERE run_id = ?1;

-- name: members
-- Those of [device_id, …] that are of a rollout.
SELECT device_id FROM rollout_devices
WHERE rollout_id = ? AND device_id IN (SELECT value FROM json_each(?));

-- name: ids
SELECT device_id FROM rollout_devices WHERE rollout_id = ?;

-- name: end_run
UPDATE runs SET ended_at = ?2, status = ?3 WHERE run_id = ?1 AND ended_at IS NULL;

-- name: open_rollouts
SELECT rollout_id FROM rollouts WHERE state NOT IN ('completed', 'cancelled', 'failed') ORDER BY created_at;

-- name: growing
-- Open rollouts whose devices may come at any time, and whether such as register do.
SELECT rollout_id, continuous FROM rollouts
WHERE state NOT IN ('completed', 'cancelled', 'failed') AND (continuous = 1 OR overlaps = 1)
ORDER BY created_at, rollout_id;

-- name: overlaps
UPDATE rollouts SET overlaps = 1 WHERE rollout_id = ?;

-- name: may_go_on
-- Whether a rollout has devices for more lanes than live (?2: the most at once), or waits for none any more. Lanes
-- that live and have no device will take one: so those that come are for them first.
WITH
live (lanes) AS (
    SELECT rollouts.lanes - (SELECT count(*) FROM rollout_lanes WHERE rollout_id = ?1)
    FROM rollouts WHERE rollout_id = ?1
),
in_flight (devices, of_lanes) AS (
    SELECT count(*), coalesce(sum(rollout_devices.lane LIKE rollouts.generation || '.%'), 0)
    FROM rollout_devices INDEXED BY rollout_devices_in_flight
    JOIN rollouts ON rollouts.rollout_id = rollout_devices.rollout_id
    WHERE
        rollout_devices.rollout_id = ?1 AND rollout_devices.lane IS NOT NULL
        AND rollout_devices.ended IS NULL
),
available (devices) AS (
    SELECT count(*) FROM (
        SELECT 1
        FROM rollout_devices INDEXED BY rollout_devices_next
        JOIN rollouts ON rollouts.rollout_id = rollout_devices.rollout_id
        WHERE
            rollout_devices.rollout_id = ?1
            AND rollout_devices.wave <= max(rollouts.wave, 1)
            AND rollout_devices.lane IS NULL
            AND rollout_devices.ended IS NULL
            AND rollout_devices.held IS NULL
        LIMIT ?2 + 1
    )
)
SELECT
    (
        rollouts.state IN ('running', 'waiting')
        AND live.lanes + in_flight.devices - in_flight.of_lanes < ?2
        AND available.devices > live.lanes - in_flight.of_lanes
    )
    OR (
        rollouts.state = 'waiting'
        AND NOT EXISTS (
            SELECT 1 FROM rollout_devices INDEXED BY rollout_devices_held
            WHERE
                rollout_devices.rollout_id = ?1
                AND rollout_devices.wave <= max(rollouts.wave, 1)
                AND rollout_devices.held IS NOT NULL
                AND rollout_devices.ended IS NULL
        )
        AND (
            rollouts.continuous = 0
            OR in_flight.devices > 0
            OR EXISTS (
                SELECT 1 FROM rollout_devices INDEXED BY rollout_devices_next
                WHERE rollout_id = ?1 AND lane IS NULL AND ended IS NULL AND held IS NULL
            )
            OR EXISTS (
                SELECT 1 FROM rollout_devices INDEXED BY rollout_devices_held
                WHERE rollout_id = ?1 AND held IS NOT NULL AND ended IS NULL
            )
        )
    )
FROM rollouts, live, in_flight, available
WHERE rollouts.rollout_id = ?1;

-- name: stop_lane
INSERT INTO rollout_lanes (rollout_id, lane, why) VALUES (?, ?, ?) ON CONFLICT DO NOTHING;

-- name: stopped_lane
SELECT why FROM rollout_lanes WHERE rollout_id = ? AND lane = ?;

-- name: stopped_lanes
SELECT count(*) FROM rollout_lanes WHERE rollout_id = ?;

-- name: lanes_stopped_by
SELECT count(*) FROM rollout_lanes WHERE rollout_id = ? AND why = ?;

-- name: strays
-- Devices of a wave in flight (?2) that no lane of the generation under way (?3, as lanes begin) has.
SELECT count(*) FROM rollout_devices INDEXED BY rollout_devices_in_flight
WHERE
    rollout_id = ?1 AND wave = ?2 AND lane IS NOT NULL AND ended IS NULL
    AND substr(lane, 1, length(?3)) <> ?3;

-- name: forget_lanes
DELETE FROM rollout_lanes WHERE rollout_id = ?;

-- name: devices
-- ?1 the rollout, ?2 states (JSON list) or null, ?3 wave or null, ?4 after this id or null, ?5 limit, ?6 this id
-- alone or null. In order of id.
SELECT
    of_rollout.device_id,
    of_rollout.wave,
    of_rollout.place,
    CASE
        WHEN of_rollout.ended IS NOT NULL THEN of_rollout.ended
        WHEN of_rollout.lane IS NULL THEN 'pending'
        WHEN devices.run_id = of_rollout.rollout_id AND devices.state IN (
            'packaging', 'notified', 'downloading', 'downloaded', 'activating'
        ) THEN devices.state
        ELSE 'queued'
    END AS state,
    of_rollout.held,
    of_rollout.held_by,
    coalesce(outcomes.attempts, CASE WHEN devices.run_id = of_rollout.rollout_id THEN devices.attempt END, 0),
    CASE
        WHEN of_rollout.ended = 'provisioned' THEN 1.0
        WHEN devices.run_id = of_rollout.rollout_id THEN devices.progress
    END,
    coalesce(outcomes.error, CASE WHEN devices.run_id = of_rollout.rollout_id THEN devices.error END),
    devices.online,
    devices.model,
    devices.firmware_version,
    outcomes.ended_at,
    outcomes.device_s,
    outcomes.packaging_s,
    outcomes.notifying_s,
    outcomes.downloading_s,
    outcomes.activating_s
FROM rollout_devices AS of_rollout
JOIN devices ON devices.device_id = of_rollout.device_id
LEFT JOIN outcomes
    ON outcomes.run_id = of_rollout.rollout_id AND outcomes.device_id = of_rollout.device_id
WHERE
    of_rollout.rollout_id = ?1
    AND (?2 IS NULL OR CASE
        WHEN of_rollout.ended IS NOT NULL THEN of_rollout.ended
        WHEN of_rollout.lane IS NULL THEN 'pending'
        WHEN devices.run_id = of_rollout.rollout_id AND devices.state IN (
            'packaging', 'notified', 'downloading', 'downloaded', 'activating'
        ) THEN devices.state
        ELSE 'queued'
    END IN (SELECT value FROM json_each(?2)))
    AND (?3 IS NULL OR of_rollout.wave = ?3)
    AND (?4 IS NULL OR of_rollout.device_id > ?4)
    AND (?6 IS NULL OR of_rollout.device_id = ?6)
ORDER BY of_rollout.device_id
LIMIT ?5;
