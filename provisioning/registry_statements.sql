-- Statements of the registry, each under its name. Batches come as one JSON array of arrays: one call of
-- SQLite per batch, in C and without the interpreter's lock, instead of one per row.

-- name: create_transitions
-- The state machine of provisioning/states.py, as it is in this version of the code.
CREATE TEMP TABLE transitions (
    before        TEXT NOT NULL,
    after         TEXT NOT NULL,
    later_attempt INTEGER NOT NULL,
    PRIMARY KEY (before, after, later_attempt)
) WITHOUT ROWID;

-- name: add_transition
INSERT INTO temp.transitions (before, after, later_attempt) VALUES (?, ?, ?);

-- name: read_identity
SELECT value FROM identity WHERE key = ?;

-- name: write_identity
INSERT INTO identity (key, value) VALUES (?, ?) ON CONFLICT (key) DO NOTHING;

-- name: replace_identity
INSERT INTO identity (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: register
-- [device_id, model, firmware_version, tags, at]. A device that is known keeps its state.
INSERT INTO devices (
    device_id, model, firmware_version, tags, registered_at, online, state, attempt, updated_at
)
SELECT
    value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, 1, 'new', 0, value ->> 4
FROM json_each(?)
WHERE true
ON CONFLICT (device_id) DO UPDATE SET
    model = excluded.model,
    firmware_version = excluded.firmware_version,
    tags = excluded.tags,
    updated_at = excluded.updated_at
WHERE (model, firmware_version, tags) IS NOT (excluded.model, excluded.firmware_version, excluded.tags);

-- name: presence
-- [device_id, online]. Only a registered device has a presence here.
UPDATE devices
SET online = news.online
FROM (SELECT value ->> 0 AS device_id, value ->> 1 AS online FROM json_each(?)) AS news
WHERE devices.device_id = news.device_id AND devices.online <> news.online;

-- name: progress
-- [device_id, run_id, attempt, state, progress, error, at]. What the table of transitions does not allow,
-- and news of another run or an earlier attempt, has no effect.
UPDATE devices
SET
    state = news.state,
    attempt = news.attempt,
    progress = news.progress,
    error = news.error,
    updated_at = news.at
FROM (
    SELECT
        value ->> 0 AS device_id,
        value ->> 1 AS run_id,
        value ->> 2 AS attempt,
        value ->> 3 AS state,
        value ->> 4 AS progress,
        value ->> 5 AS error,
        value ->> 6 AS at
    FROM json_each(?)
) AS news
WHERE
    devices.device_id = news.device_id
    AND devices.run_id = news.run_id
    AND devices.attempt <= news.attempt
    AND (
        (devices.state = news.state AND devices.attempt = news.attempt)
        OR EXISTS (
            SELECT 1
            FROM temp.transitions
            WHERE
                transitions.before = devices.state
                AND transitions.after = news.state
                AND transitions.later_attempt = (news.attempt > devices.attempt)
        )
    );

-- name: outcomes
-- [run_id, device_id, state, attempts, error, ended_at, device_s, packaging_s, notifying_s, downloading_s,
-- activating_s, firmware_version]. The first record of an outcome stays.
INSERT INTO outcomes (
    run_id, device_id, state, attempts, error, ended_at,
    device_s, packaging_s, notifying_s, downloading_s, activating_s
)
SELECT
    value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5,
    value ->> 6, value ->> 7, value ->> 8, value ->> 9, value ->> 10
FROM json_each(?)
WHERE true
ON CONFLICT (run_id, device_id) DO NOTHING;

-- name: finish
-- The same rows as `outcomes`: the device itself, if this run still has it.
UPDATE devices
SET
    state = news.state,
    attempt = news.attempts,
    progress = CASE WHEN news.state = 'provisioned' THEN 1.0 ELSE devices.progress END,
    error = news.error,
    firmware_version = coalesce(news.firmware_version, devices.firmware_version),
    updated_at = news.at
FROM (
    SELECT
        value ->> 0 AS run_id,
        value ->> 1 AS device_id,
        value ->> 2 AS state,
        value ->> 3 AS attempts,
        value ->> 4 AS error,
        value ->> 5 AS at,
        value ->> 11 AS firmware_version
    FROM json_each(?)
) AS news
WHERE
    devices.device_id = news.device_id
    AND devices.run_id = news.run_id
    AND EXISTS (
        SELECT 1
        FROM temp.transitions
        WHERE transitions.before = devices.state AND transitions.after = news.state
    );

-- name: create_run
INSERT INTO runs (run_id, started_at, status, devices, options, release) VALUES (?, ?, 'running', 0, ?, ?)
ON CONFLICT (run_id) DO NOTHING;

-- name: claim_new
UPDATE devices
SET state = 'queued', run_id = ?1, attempt = 0, progress = NULL, error = NULL, updated_at = ?2
WHERE device_id IN (SELECT device_id FROM devices WHERE state = 'new' ORDER BY device_id LIMIT ?3);

-- name: claim_named
UPDATE devices
SET state = 'queued', run_id = ?1, attempt = 0, progress = NULL, error = NULL, updated_at = ?2
WHERE
    device_id IN (SELECT value FROM json_each(?3))
    AND EXISTS (
        SELECT 1
        FROM temp.transitions
        WHERE transitions.before = devices.state AND transitions.after = 'queued'
    );

-- name: claimed
SELECT device_id FROM devices WHERE run_id = ? ORDER BY device_id;

-- name: count_run
UPDATE runs SET devices = ?2 WHERE run_id = ?1;

-- name: end_run
UPDATE runs SET ended_at = ?2, status = ?3 WHERE run_id = ?1 AND ended_at IS NULL;

-- name: left_over
SELECT device_id, attempt
FROM devices
WHERE
    run_id = ?
    AND EXISTS (
        SELECT 1
        FROM temp.transitions
        WHERE transitions.before = devices.state AND transitions.after = 'cancelled'
    );

-- name: run
SELECT run_id, started_at, ended_at, status, devices, options, release FROM runs WHERE run_id = ?;

-- name: runs
SELECT run_id, started_at, ended_at, status, devices, options, release FROM runs
ORDER BY started_at DESC, run_id DESC LIMIT ?;

-- name: open_runs
SELECT run_id FROM runs WHERE ended_at IS NULL ORDER BY started_at;

-- name: shown_runs
-- Runs that are no rollouts: those that have not ended, and the latest few (?) that have.
SELECT run_id
FROM (
    SELECT run_id, started_at FROM runs
    WHERE ended_at IS NULL AND run_id NOT IN (SELECT rollout_id FROM rollouts)
    UNION
    SELECT run_id, started_at FROM (
        SELECT run_id, started_at FROM runs
        WHERE ended_at IS NOT NULL AND run_id NOT IN (SELECT rollout_id FROM rollouts)
        ORDER BY started_at DESC, run_id DESC LIMIT ?
    )
)
ORDER BY started_at DESC, run_id DESC;

-- name: run_counts
-- Ended ones by their outcome in this run; those under way by the device itself.
SELECT state, count(*) FROM outcomes WHERE run_id = ?1 GROUP BY state
UNION ALL
SELECT state, count(*)
FROM devices
WHERE run_id = ?1 AND state IN ('queued', 'packaging', 'notified', 'downloading', 'downloaded', 'activating')
GROUP BY state;

-- name: run_failures
SELECT device_id, state, error, ended_at
FROM outcomes
WHERE run_id = ? AND state <> 'provisioned'
ORDER BY ended_at DESC, device_id
LIMIT ?;

-- name: run_percentiles
-- By the nearest rank, over the provisioned devices.
WITH
times (kind, seconds) AS (
    SELECT 'device', device_s FROM outcomes WHERE run_id = ?1 AND state = 'provisioned'
    UNION ALL
    SELECT 'packaging', packaging_s FROM outcomes WHERE run_id = ?1 AND state = 'provisioned'
    UNION ALL
    SELECT 'notifying', notifying_s FROM outcomes WHERE run_id = ?1 AND state = 'provisioned'
    UNION ALL
    SELECT 'downloading', downloading_s FROM outcomes WHERE run_id = ?1 AND state = 'provisioned'
    UNION ALL
    SELECT 'activating', activating_s FROM outcomes WHERE run_id = ?1 AND state = 'provisioned'
),
ranked AS (
    SELECT
        kind,
        seconds,
        row_number() OVER (PARTITION BY kind ORDER BY seconds) AS place,
        count(*) OVER (PARTITION BY kind) AS total
    FROM times
    WHERE seconds IS NOT NULL
),
asked (percent) AS (VALUES (50), (95), (99))
SELECT ranked.kind, asked.percent, ranked.seconds
FROM ranked CROSS JOIN asked
WHERE ranked.place = (ranked.total * asked.percent + 99) / 100;

-- name: device
SELECT
    device_id, model, firmware_version, tags, registered_at, online, state, run_id, attempt, progress, error,
    updated_at
FROM devices
WHERE device_id = ?;

-- name: devices
-- ?1 state or null, ?2 run or null, ?3 after this id or null, ?4 limit.
SELECT
    device_id, model, firmware_version, tags, registered_at, online, state, run_id, attempt, progress, error,
    updated_at
FROM devices
WHERE
    (?1 IS NULL OR state = ?1)
    AND (?2 IS NULL OR run_id = ?2)
    AND (?3 IS NULL OR device_id > ?3)
ORDER BY device_id
LIMIT ?4;

-- name: run_devices
-- ?1 the run, ?2 after this id or null, ?3 limit. Those that ended in it, wherever they are now, and those that it has.
SELECT
    members.device_id,
    coalesce(outcomes.state, devices.state),
    coalesce(outcomes.attempts, devices.attempt, 0),
    CASE
        WHEN outcomes.state = 'provisioned' THEN 1.0
        WHEN outcomes.state IS NULL THEN devices.progress
    END,
    CASE WHEN outcomes.state IS NULL THEN devices.error ELSE outcomes.error END,
    devices.online,
    devices.model,
    devices.firmware_version,
    outcomes.ended_at,
    outcomes.device_s,
    outcomes.packaging_s,
    outcomes.notifying_s,
    outcomes.downloading_s,
    outcomes.activating_s
FROM (
    SELECT device_id FROM (
        SELECT device_id FROM outcomes
        WHERE run_id = ?1 AND device_id > coalesce(?2, '')
        ORDER BY device_id LIMIT ?3
    )
    UNION
    SELECT device_id FROM (
        SELECT device_id FROM devices
        WHERE
            run_id = ?1
            AND state IN ('queued', 'packaging', 'notified', 'downloading', 'downloaded', 'activating')
            AND (?2 IS NULL OR device_id > ?2)
        ORDER BY device_id LIMIT ?3
    )
) AS members
JOIN devices ON devices.device_id = members.device_id
LEFT JOIN outcomes ON outcomes.run_id = ?1 AND outcomes.device_id = members.device_id
ORDER BY members.device_id
LIMIT ?3;

-- name: count_devices
SELECT count(*) FROM devices WHERE (?1 IS NULL OR state = ?1) AND (?2 IS NULL OR run_id = ?2);

-- name: states
SELECT state, count(*) FROM devices GROUP BY state;

-- name: known_states
SELECT device_id, state FROM devices WHERE device_id IN (SELECT value FROM json_each(?));

-- name: standings
-- The devices of a fleet, each with the options of its latest run.
SELECT
    wanted.value, devices.state, devices.run_id, devices.error, runs.options, runs.started_at
FROM json_each(?) AS wanted
JOIN devices ON devices.device_id = wanted.value
LEFT JOIN runs ON runs.run_id = devices.run_id;
