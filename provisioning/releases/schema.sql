-- Releases, in the registry's file: version 4 of its format. Their firmware is in files beside it.

CREATE TABLE releases (
    name          TEXT PRIMARY KEY,
    version       TEXT NOT NULL,
    models        TEXT NOT NULL,               -- JSON list, in order; empty: for all
    sha256        TEXT NOT NULL,               -- of the firmware, which is in releases/<sha256>.bin
    size_bytes    INTEGER NOT NULL,
    configuration TEXT,                        -- JSON object with placeholders
    notes         TEXT NOT NULL,
    created_at    REAL NOT NULL
) WITHOUT ROWID;

CREATE INDEX releases_by_firmware ON releases (sha256);

-- What a run, or a rollout, brings to its devices; null: the release that comes with the service.
ALTER TABLE runs ADD COLUMN release TEXT;
