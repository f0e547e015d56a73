-- Enrolments, in the registry's file: version 5 of its format. No key is in it: each follows from the group's.

CREATE TABLE enrolments (
    device_id   TEXT PRIMARY KEY,
    by          TEXT NOT NULL,                 -- a fleet's id, or "operator"
    enrolled_at REAL NOT NULL,
    revoked_at  REAL                           -- null: it may connect
) WITHOUT ROWID;

CREATE INDEX enrolments_revoked ON enrolments (device_id) WHERE revoked_at IS NOT NULL;
