-- The engine's state, format 2. Times are microseconds since the epoch, UTC.

CREATE TABLE instances (
    key              INTEGER PRIMARY KEY,  -- the instance in all other tables: short, and in order of creation
    id               TEXT    NOT NULL UNIQUE,
    name             TEXT    NOT NULL,
    version          TEXT,
    status           INTEGER NOT NULL,     -- records.Status
    execution        INTEGER NOT NULL,     -- 1, and one more with each continue-as-new or replacement
    first_seq        INTEGER NOT NULL,     -- where this execution's history begins; older rows are garbage
    parent_id        TEXT,
    parent_execution INTEGER NOT NULL,
    parent_task_id   INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    updated_at       INTEGER NOT NULL,
    input            TEXT,
    output           TEXT,
    failure          TEXT,                 -- failures.encode
    custom_status    TEXT,
    tags             TEXT                  -- JSON object
);
-- What start-up looks for; it stays small however many instances have ended.
CREATE INDEX unfinished ON instances (status, key) WHERE status IN (0, 6, 7);

-- In the order in which it happened: a commit fills pages one after another, whichever instances it is about, and
-- only the index, which is small, is written at many places.
CREATE TABLE history (
    instance INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    kind     INTEGER NOT NULL,             -- records.Kind
    at       INTEGER NOT NULL,
    task_id  INTEGER NOT NULL,
    name     TEXT,
    ref      TEXT,
    data     TEXT
);
CREATE UNIQUE INDEX history_by_instance ON history (instance, seq);

-- Messages that no turn has taken in the transaction that made them.
CREATE TABLE messages (
    id        INTEGER PRIMARY KEY,
    instance  INTEGER NOT NULL,
    kind      INTEGER NOT NULL,
    task_id   INTEGER NOT NULL,
    name      TEXT,
    ref       TEXT,
    data      TEXT,
    execution INTEGER NOT NULL
);

-- Timers not fired; task 0 is the delayed start of the instance itself.
CREATE TABLE timers (
    instance INTEGER NOT NULL,
    task_id  INTEGER NOT NULL,
    due      INTEGER NOT NULL,
    PRIMARY KEY (instance, task_id)
) WITHOUT ROWID;
CREATE INDEX timers_due ON timers (due);

-- Activities whose execution ended before they did: nobody waits for them, they run all the same.
CREATE TABLE detached_activities (
    instance  INTEGER NOT NULL,
    execution INTEGER NOT NULL,
    task_id   INTEGER NOT NULL,
    name      TEXT    NOT NULL,
    input     TEXT,
    PRIMARY KEY (instance, execution, task_id)
) WITHOUT ROWID;
