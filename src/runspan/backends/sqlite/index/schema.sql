-- How far the store has been read, see feed.py. displacement: how far an id is from the time of its run, at most.
CREATE TABLE progress (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    change_id INTEGER NOT NULL,
    change_trace_id BLOB NOT NULL,
    run INTEGER NOT NULL,
    displacement INTEGER NOT NULL
) STRICT;

-- Texts that many runs share. Except for tenants, they are cut to a bounded length: a run that is found by one is compared
-- with its document.
CREATE TABLE names (id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE) STRICT;

-- The id is the run's sort time in milliseconds, or the next one that no run has. Without a duration or a cost,
-- these columns are -1. text_row: the run's row in the text index, if it is there.
CREATE TABLE indexed_runs (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL UNIQUE,
    tenant INTEGER NOT NULL,
    time INTEGER NOT NULL,
    ended INTEGER,
    workflow_id INTEGER,
    status INTEGER,
    trigger_type INTEGER,
    error_code INTEGER,
    duration INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    text_row INTEGER,
    run_id BLOB NOT NULL
) STRICT;

CREATE INDEX runs_by_duration ON indexed_runs (tenant, duration, run_id);
CREATE INDEX runs_by_cost ON indexed_runs (tenant, cost, run_id);
-- Those that a search for a text reads itself: few, since they have not ended or are large.
CREATE INDEX runs_without_text ON indexed_runs (tenant, id) WHERE text_row IS NULL;

-- What statistics have counted of each run, compressed: it is subtracted when the run changes.
CREATE TABLE counted_facts (id INTEGER PRIMARY KEY, facts BLOB NOT NULL) STRICT;

-- The values of each run by their kind, see facts_index.py; the runs of each in the order of time.
CREATE TABLE run_values (
    tenant INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    value INTEGER NOT NULL,
    run INTEGER NOT NULL,
    PRIMARY KEY (tenant, kind, value, run)
) STRICT, WITHOUT ROWID;

-- Runs whose document cannot be read.
CREATE TABLE damaged_runs (trace_id BLOB PRIMARY KEY, tenant INTEGER NOT NULL, run_id BLOB NOT NULL)
    STRICT, WITHOUT ROWID;
