-- Which runs have changed since the index of the store last read them, in the store itself. The row that the index read
-- last stays, so that numbers are not used again, and the index knows its store by it. The first row is random.
CREATE TABLE changed_runs (id INTEGER PRIMARY KEY, trace_id BLOB NOT NULL) STRICT;
INSERT INTO changed_runs VALUES (1, randomblob(16));

CREATE TRIGGER run_added AFTER INSERT ON runs BEGIN
    INSERT INTO changed_runs (trace_id) VALUES (NEW.trace_id);
END;

CREATE TRIGGER run_changed AFTER UPDATE OF digest, time ON runs
WHEN NEW.digest IS NOT OLD.digest OR NEW.time IS NOT OLD.time BEGIN
    INSERT INTO changed_runs (trace_id) VALUES (NEW.trace_id);
END;

CREATE TRIGGER run_removed AFTER DELETE ON runs BEGIN
    INSERT INTO changed_runs (trace_id) VALUES (OLD.trace_id);
END;
