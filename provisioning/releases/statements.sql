-- Statements of the releases, each under its name.

-- name: all
SELECT name, version, models, sha256, size_bytes, configuration, notes, created_at FROM releases
ORDER BY created_at DESC, name;

-- name: release
SELECT name, version, models, sha256, size_bytes, configuration, notes, created_at FROM releases WHERE name = ?;

-- name: add
INSERT INTO releases (name, version, models, sha256, size_bytes, configuration, notes, created_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: remove
DELETE FROM releases WHERE name = ?;

-- name: of_firmware
SELECT count(*) FROM releases WHERE sha256 = ?;

-- name: unfinished
-- Runs and rollouts that have not ended and bring this release.
SELECT run_id FROM runs WHERE release = ? AND ended_at IS NULL ORDER BY started_at;

-- name: not_fitting
-- Of [device_id, …]: ?2 the models or null, ?3 the tags that are needed.
SELECT count(*)
FROM devices
WHERE
    device_id IN (SELECT value FROM json_each(?1))
    AND (
        (?2 IS NOT NULL AND model NOT IN (SELECT value FROM json_each(?2)))
        OR EXISTS (
            SELECT 1 FROM json_each(?3) AS needed
            WHERE needed.value NOT IN (SELECT key FROM json_each(devices.tags))
        )
    );

-- name: of_run
-- The devices of a run.
SELECT device_id FROM devices WHERE run_id = ?;
