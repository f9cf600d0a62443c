-- The first table, so that wal.py finds its page without SQLite. Every transaction changes its only row.
CREATE TABLE last_commit (id INTEGER PRIMARY KEY, marker BLOB NOT NULL, previous BLOB NOT NULL) STRICT;
INSERT INTO last_commit VALUES (1, randomblob(16), zeroblob(16));

-- The columns that a list needs precede the document, so that a list reads no overflow pages.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL UNIQUE,
    tenant BLOB NOT NULL,
    run_id BLOB NOT NULL,
    workflow_id BLOB,
    status BLOB,
    time INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    digest BLOB NOT NULL,
    observed_at INTEGER,
    superseded BLOB,
    incomplete BLOB,
    checksum BLOB NOT NULL,
    summary BLOB NOT NULL,
    document BLOB NOT NULL,
    step_ids BLOB,
    written_at INTEGER NOT NULL,
    resource_id INTEGER,
    row_checksum BLOB NOT NULL
) STRICT;

CREATE INDEX runs_by_time ON runs (tenant, time, run_id);
CREATE INDEX runs_by_workflow ON runs (tenant, workflow_id, time, run_id);
CREATE INDEX runs_by_status ON runs (tenant, status, time, run_id);
CREATE INDEX runs_by_workflow_and_status ON runs (tenant, workflow_id, status, time, run_id);
CREATE INDEX runs_by_end ON runs (ended);
-- Has a row only of each run that is pending or running, and all that a search for stuck ones compares.
CREATE INDEX live_runs ON runs (tenant, time, run_id, observed_at, status) WHERE observed_at IS NOT NULL;

CREATE TABLE fragments (
    id INTEGER PRIMARY KEY,
    trace_id BLOB NOT NULL,
    tenant BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    is_revision_span INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    otlp BLOB NOT NULL,
    row_checksum BLOB NOT NULL,
    UNIQUE (trace_id, tenant, fingerprint)
) STRICT;

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
