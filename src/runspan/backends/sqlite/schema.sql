-- The first table, so that wal.py finds its page without SQLite. Every transaction changes its only row.
CREATE TABLE last_commit (id INTEGER PRIMARY KEY, marker BLOB NOT NULL, previous BLOB NOT NULL) STRICT;
INSERT INTO last_commit VALUES (1, randomblob(16), zeroblob(16));

-- The document is the last column, so that what is read and changed without it is in no overflow pages.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL UNIQUE,
    tenant BLOB NOT NULL,
    run_id BLOB NOT NULL,
    workflow_id BLOB,
    status BLOB,
    workflow_key INTEGER,
    status_key INTEGER,
    time INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    digest BLOB NOT NULL,
    observed_at INTEGER,
    superseded BLOB,
    incomplete BLOB,
    written_at INTEGER NOT NULL,
    resource_id INTEGER,
    row_checksum BLOB NOT NULL,
    checksum BLOB NOT NULL,
    summary BLOB NOT NULL,
    step_ids BLOB,
    document BLOB NOT NULL
) STRICT;

-- Few and short, since most runs of a backfill change another page of each. Runs of the same time are sorted when they
-- are read. Most runs are completed and have no status key: a list of them skips the others in the first two indexes.
CREATE INDEX runs_by_time ON runs (tenant, time, run_id, status_key);
CREATE INDEX runs_by_workflow ON runs (workflow_key, time, status_key);
CREATE INDEX runs_by_status ON runs (tenant, status_key, time) WHERE status_key IS NOT NULL;
CREATE INDEX runs_by_workflow_and_status ON runs (workflow_key, status_key, time) WHERE status_key IS NOT NULL;
-- By day, and in the order of arrival within it, so that the runs of a backfill change few of its pages.
CREATE INDEX runs_by_end ON runs (ended / 86400000000000, id, ended);
-- Has a row only of each run that is pending or running, and all that a search for stuck ones compares.
CREATE INDEX live_runs ON runs (tenant, time, run_id, observed_at, status) WHERE observed_at IS NOT NULL;

-- Ids are never used again: the newest one shows whether the fragments of a trace have changed.
CREATE TABLE fragments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id BLOB NOT NULL,
    tenant BLOB NOT NULL,
    span_id BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    kind INTEGER NOT NULL,
    spans INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    missing BLOB,
    tried INTEGER,
    hint_checksum BLOB,
    content BLOB NOT NULL,
    row_checksum BLOB NOT NULL,
    UNIQUE (trace_id, tenant, span_id, fingerprint)
) STRICT;

-- The few rows that are not step spans.
CREATE INDEX other_fragments ON fragments (trace_id, tenant, kind, id) WHERE kind > 0;

-- How much waits, by trace and by tenant.
CREATE TABLE waiting_traces (
    trace_id BLOB NOT NULL,
    tenant BLOB NOT NULL,
    spans INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    newest INTEGER NOT NULL,
    PRIMARY KEY (trace_id, tenant)
) STRICT, WITHOUT ROWID;

CREATE TABLE waiting_tenants (
    tenant BLOB PRIMARY KEY NOT NULL,
    spans INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TRIGGER fragment_added AFTER INSERT ON fragments BEGIN
    INSERT INTO waiting_traces VALUES (NEW.trace_id, NEW.tenant, NEW.spans, length(NEW.content), NEW.id)
        ON CONFLICT DO UPDATE SET
        spans = spans + excluded.spans, bytes = bytes + excluded.bytes, newest = excluded.newest;
    INSERT INTO waiting_tenants VALUES (NEW.tenant, NEW.spans, length(NEW.content))
        ON CONFLICT DO UPDATE SET spans = spans + excluded.spans, bytes = bytes + excluded.bytes;
END;

CREATE TRIGGER fragment_removed AFTER DELETE ON fragments BEGIN
    UPDATE waiting_traces SET spans = spans - OLD.spans, bytes = bytes - length(OLD.content)
        WHERE trace_id = OLD.trace_id AND tenant = OLD.tenant;
    DELETE FROM waiting_traces WHERE trace_id = OLD.trace_id AND tenant = OLD.tenant AND spans <= 0;
    UPDATE waiting_tenants SET spans = spans - OLD.spans, bytes = bytes - length(OLD.content)
        WHERE tenant = OLD.tenant;
    DELETE FROM waiting_tenants WHERE tenant = OLD.tenant AND spans <= 0;
END;

CREATE TABLE foreign_spans (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL,
    tenant BLOB NOT NULL,
    span_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    received_at INTEGER NOT NULL,
    otlp BLOB NOT NULL,
    row_checksum BLOB NOT NULL,
    UNIQUE (trace_id, tenant, span_id, digest)
) STRICT;

CREATE TABLE dictionaries (id INTEGER PRIMARY KEY, content BLOB NOT NULL, digest BLOB NOT NULL) STRICT;
CREATE TABLE resources (id INTEGER PRIMARY KEY, content BLOB NOT NULL UNIQUE) STRICT;
