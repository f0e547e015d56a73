-- Each brings a file of the format before it to the format that it is named after.

-- name: to_2
-- History in the order in which it happened, no longer clustered by instance.
ALTER TABLE history RENAME TO history_1;
CREATE TABLE history (
    instance INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    kind     INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    task_id  INTEGER NOT NULL,
    name     TEXT,
    ref      TEXT,
    data     TEXT
);
INSERT INTO history SELECT instance, seq, kind, at, task_id, name, ref, data FROM history_1;
DROP TABLE history_1;
CREATE UNIQUE INDEX history_by_instance ON history (instance, seq);
