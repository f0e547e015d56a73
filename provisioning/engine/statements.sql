-- Statements by name. {rows} stands for as many rows of parameters as one call carries.

-- name: put_instances
INSERT INTO instances VALUES {rows}
ON CONFLICT (key) DO UPDATE SET
    name = excluded.name, version = excluded.version, status = excluded.status,
    execution = excluded.execution, first_seq = excluded.first_seq, parent_id = excluded.parent_id,
    parent_execution = excluded.parent_execution, parent_task_id = excluded.parent_task_id,
    created_at = excluded.created_at, updated_at = excluded.updated_at, input = excluded.input,
    output = excluded.output, failure = excluded.failure, custom_status = excluded.custom_status,
    tags = excluded.tags;

-- name: set_custom_statuses
-- (key, time, status): the most frequent change, and one that touches no index.
UPDATE instances SET updated_at = news.column2, custom_status = news.column3
FROM (VALUES {rows}) AS news WHERE key = news.column1;

-- name: add_history
INSERT INTO history VALUES {rows};

-- name: trim_history
DELETE FROM history WHERE instance = ? AND seq < ?;

-- name: add_timers
INSERT OR REPLACE INTO timers VALUES {rows};

-- name: drop_timers
-- By a SELECT: to find several columns IN (VALUES …) SQLite reads the whole table, for two rows and more.
DELETE FROM timers WHERE (instance, task_id) IN (SELECT column1, column2 FROM (VALUES {rows}));

-- name: add_messages
INSERT INTO messages VALUES {rows};

-- name: drop_messages
DELETE FROM messages WHERE (id) IN (VALUES {rows});

-- name: add_detached
INSERT OR IGNORE INTO detached_activities VALUES {rows};

-- name: drop_detached
DELETE FROM detached_activities
WHERE (instance, execution, task_id) IN (SELECT column1, column2, column3 FROM (VALUES {rows}));

-- name: find_instance
SELECT * FROM instances WHERE id = ?;

-- name: existing
SELECT id FROM instances WHERE (id) IN (VALUES {rows});

-- name: last_event
SELECT seq, at FROM history WHERE instance = ? ORDER BY seq DESC LIMIT 1;

-- name: read_history
-- A limit of -1 is none.
SELECT kind, at, task_id, name, ref, data FROM history WHERE instance = ? AND seq >= ? ORDER BY seq LIMIT ?;

-- name: next_key
SELECT coalesce(max(key), 0) + 1 FROM instances;

-- name: next_message
SELECT coalesce(max(id), 0) + 1 FROM messages;

-- name: ready_starts
-- Start-up looks only at what has not ended: the partial index "unfinished" serves a query that repeats its
-- condition, status IN (0, 6, 7), word for word, and no other.
SELECT id, key FROM instances
WHERE status IN (0, 6, 7) AND status = 6
  AND NOT EXISTS (SELECT 1 FROM timers WHERE instance = key AND task_id = 0)
UNION ALL
SELECT id, key FROM instances
WHERE status IN (0, 6, 7) AND status = 0
  AND NOT EXISTS (SELECT 1 FROM history WHERE instance = key AND seq >= first_seq)
ORDER BY key;

-- name: unfinished_activities
-- As above, so that the history of what has ended is not read.
-- Asked for after the last answer to the same task (a retry asks again under the same id).
SELECT i.id, h.instance, i.execution, h.task_id,
       max(CASE WHEN h.kind = 2 THEN h.seq END) AS asked,
       coalesce(max(CASE WHEN h.kind IN (3, 4) THEN h.seq END), -1) AS answered
FROM instances AS i JOIN history AS h ON h.instance = i.key AND h.seq >= i.first_seq
WHERE i.status IN (0, 6, 7) AND i.status IN (0, 7) AND h.kind IN (2, 3, 4)
GROUP BY h.instance, h.task_id HAVING asked > answered ORDER BY h.instance, asked;

-- name: scheduled_activity
SELECT name, data FROM history WHERE instance = ? AND seq = ?;

-- name: detached_activities
SELECT i.id, d.instance, d.execution, d.task_id, d.name, d.input
FROM detached_activities AS d JOIN instances AS i ON i.key = d.instance;

-- name: due_timers
SELECT i.id, t.instance, t.task_id, t.due FROM timers AS t JOIN instances AS i ON i.key = t.instance
WHERE t.due > ? AND t.due <= ? ORDER BY t.due;

-- name: waiting_messages
SELECT m.id, i.id, m.kind, m.task_id, m.name, m.ref, m.data, m.execution
FROM messages AS m JOIN instances AS i ON i.key = m.instance ORDER BY m.id;

-- name: count_by_status
SELECT status, count(*) FROM instances GROUP BY status;

-- name: purge_instances
DELETE FROM instances WHERE (key) IN (VALUES {rows});

-- name: purge_history
DELETE FROM history WHERE (instance) IN (VALUES {rows});

-- name: purge_timers
DELETE FROM timers WHERE (instance) IN (VALUES {rows});

-- name: purge_detached
DELETE FROM detached_activities WHERE (instance) IN (VALUES {rows});

-- name: outlines
SELECT key, id, status, created_at, updated_at FROM instances WHERE key > ? ORDER BY key LIMIT ?;

-- name: children
SELECT seq, ref FROM history WHERE instance = ? AND seq > ? AND kind = 5 ORDER BY seq LIMIT ?;

-- name: detached
SELECT execution, task_id FROM detached_activities WHERE instance = ?;
