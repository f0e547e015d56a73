-- Statements of the enrolments, each under its name.

-- name: count
SELECT count(*) FROM enrolments;

-- name: admitted
SELECT device_id FROM enrolments WHERE revoked_at IS NULL;

-- name: revoked
SELECT device_id FROM enrolments WHERE revoked_at IS NOT NULL;

-- name: enrolment
SELECT device_id, by, enrolled_at, revoked_at FROM enrolments WHERE device_id = ?;

-- name: page
-- ?1 the id that it goes on after, or null; ?2 whether they are to be revoked, or null; ?3 how many.
SELECT device_id, by, enrolled_at, revoked_at
FROM enrolments
WHERE (?1 IS NULL OR device_id > ?1) AND (?2 IS NULL OR (revoked_at IS NOT NULL) = ?2)
ORDER BY device_id
LIMIT ?3;

-- name: enrol
-- One that is revoked stays so.
INSERT INTO enrolments (device_id, by, enrolled_at) VALUES (?, ?, ?)
ON CONFLICT (device_id) DO NOTHING
RETURNING device_id;

-- name: revoke
-- Of a device that nobody has enrolled too: a broker that lets in anybody does not know it.
INSERT INTO enrolments (device_id, by, enrolled_at, revoked_at) VALUES (?1, ?2, ?3, ?3)
ON CONFLICT (device_id) DO UPDATE SET revoked_at = excluded.revoked_at WHERE revoked_at IS NULL
RETURNING device_id;

-- name: restore
UPDATE enrolments SET revoked_at = NULL WHERE device_id = ? AND revoked_at IS NOT NULL
RETURNING device_id;

-- name: remove
DELETE FROM enrolments WHERE device_id = ? RETURNING device_id;
