-- What is asked of the registry by those who look at it.

-- name: history
-- The latest outcomes of a device, by the start of their runs: runs are few, and each has its outcome by key.
SELECT
    outcomes.run_id, outcomes.state, outcomes.attempts, outcomes.error, outcomes.ended_at, outcomes.device_s
FROM runs CROSS JOIN outcomes
WHERE outcomes.run_id = runs.run_id AND outcomes.device_id = ?
ORDER BY runs.started_at DESC, runs.run_id DESC
LIMIT ?;

-- name: cells
-- A letter for the state of each device, in order of id.
SELECT group_concat(code, '') FROM (
    SELECT
        CASE state
            WHEN 'new' THEN 'a'
            WHEN 'queued' THEN 'b'
            WHEN 'packaging' THEN 'c'
            WHEN 'notified' THEN 'd'
            WHEN 'downloading' THEN 'e'
            WHEN 'downloaded' THEN 'f'
            WHEN 'activating' THEN 'g'
            WHEN 'provisioned' THEN 'h'
            WHEN 'failed' THEN 'i'
            WHEN 'timed_out' THEN 'j'
            WHEN 'rejected' THEN 'k'
            WHEN 'cancelled' THEN 'l'
        END AS code
    FROM devices ORDER BY device_id
);

-- name: ids
SELECT json_group_array(device_id) FROM (SELECT device_id FROM devices ORDER BY device_id);

-- name: cells_of_rollout
-- The same, of what has become of a rollout's devices in it; 'a' is pending.
SELECT group_concat(code, '') FROM (
    SELECT
        CASE
            WHEN of_rollout.ended IS NOT NULL
                THEN CASE of_rollout.ended
                    WHEN 'provisioned' THEN 'h'
                    WHEN 'failed' THEN 'i'
                    WHEN 'timed_out' THEN 'j'
                    WHEN 'rejected' THEN 'k'
                    ELSE 'l'
                END
            WHEN of_rollout.lane IS NULL THEN 'a'
            ELSE coalesce((
                SELECT
                    CASE state
                        WHEN 'packaging' THEN 'c'
                        WHEN 'notified' THEN 'd'
                        WHEN 'downloading' THEN 'e'
                        WHEN 'downloaded' THEN 'f'
                        WHEN 'activating' THEN 'g'
                    END
                FROM devices
                WHERE devices.device_id = of_rollout.device_id AND devices.run_id = of_rollout.rollout_id
            ), 'b')
        END AS code
    FROM rollout_devices AS of_rollout
    WHERE of_rollout.rollout_id = ?
    ORDER BY of_rollout.device_id
);

-- name: ids_of_rollout
SELECT json_group_array(device_id) FROM (
    SELECT device_id FROM rollout_devices WHERE rollout_id = ? ORDER BY device_id
);

-- name: ended
-- ?1 the run, ?2 when the first step begins, ?3 how long a step is, ?4 the last step.
SELECT state, max(0, min(?4, CAST((ended_at - ?2) / ?3 AS INTEGER))) AS step, count(*)
FROM outcomes WHERE run_id = ?1 GROUP BY state, step;

-- name: times
-- By the nearest rank, over the devices that were provisioned in a step.
WITH times AS (
    SELECT max(0, min(?4, CAST((ended_at - ?2) / ?3 AS INTEGER))) AS step, device_s
    FROM outcomes WHERE run_id = ?1 AND state = 'provisioned' AND device_s IS NOT NULL
),
ranked AS (
    SELECT
        step,
        device_s,
        row_number() OVER (PARTITION BY step ORDER BY device_s) AS place,
        count(*) OVER (PARTITION BY step) AS total
    FROM times
),
asked (percent) AS (VALUES (50), (95))
SELECT ranked.step, asked.percent, ranked.device_s
FROM ranked CROSS JOIN asked
WHERE ranked.place = (ranked.total * asked.percent + 99) / 100;

-- name: span
-- From when to when a run has outcomes, and may have more.
SELECT coalesce(rollouts.started_at, runs.started_at), runs.ended_at
FROM runs LEFT JOIN rollouts ON rollouts.rollout_id = runs.run_id
WHERE runs.run_id = ?;

-- name: states
SELECT state, count(*) FROM devices GROUP BY state;

-- name: online
SELECT count(*) FROM devices WHERE online = 1;

-- name: failures
-- Devices that their latest run has left so: the same words are one reason.
-- Device and run are those of the latest, as SQLite has it beside one max().
SELECT state, error, count(*) AS devices, device_id, run_id, max(updated_at) AS last_at
FROM devices
WHERE state IN ('failed', 'timed_out', 'rejected')
GROUP BY state, error
ORDER BY devices DESC, last_at DESC
LIMIT ?;

-- name: runs_by_status
-- Those that are no rollouts.
SELECT status, count(*) FROM runs WHERE run_id NOT IN (SELECT rollout_id FROM rollouts) GROUP BY status;

-- name: rollouts_by_state
SELECT state, count(*) FROM rollouts GROUP BY state;
