-- Which runs have changed or gone since the index of the store read them, in the store itself; new runs have the highest
-- numbers. The row that the index read last stays, so that numbers are not used again, and the index knows its store by
-- it. The first row is random. last_run: the highest number of a run when one was deleted, which the next one follows.
CREATE TABLE changed_runs (id INTEGER PRIMARY KEY, trace_id BLOB NOT NULL, last_run INTEGER) STRICT;
INSERT INTO changed_runs VALUES (1, randomblob(16), NULL);

-- There is none for new runs: with one, SQLite copies all rows of a statement before it inserts them.
CREATE TRIGGER run_changed AFTER UPDATE OF digest, time ON runs
WHEN NEW.digest IS NOT OLD.digest OR NEW.time IS NOT OLD.time BEGIN
    INSERT INTO changed_runs (trace_id) VALUES (NEW.trace_id);
END;

CREATE TRIGGER run_removed AFTER DELETE ON runs BEGIN
    INSERT INTO changed_runs (trace_id, last_run) VALUES (OLD.trace_id, (SELECT ifnull(max(id), 0) FROM runs));
END;
