-- Sums over the runs of a workflow that started in a span of hours: one hour, and longer spans that contain the same
-- sums, so that a long range of time has few rows. ``start`` is the first hour of the span, in hours since 1970.

CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    tenant BLOB NOT NULL,
    workflow_id BLOB,
    runs INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX series_by_workflow ON series (tenant, coalesce(workflow_id, 0));

CREATE TABLE run_sums (
    series INTEGER NOT NULL,
    span INTEGER NOT NULL,
    start INTEGER NOT NULL,
    status BLOB NOT NULL,
    runs INTEGER NOT NULL,
    timed INTEGER NOT NULL,
    duration INTEGER NOT NULL,
    PRIMARY KEY (series, span, start, status)
) STRICT, WITHOUT ROWID;

CREATE TABLE duration_sums (
    series INTEGER NOT NULL,
    span INTEGER NOT NULL,
    start INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    runs INTEGER NOT NULL,
    PRIMARY KEY (series, span, start, bucket)
) STRICT, WITHOUT ROWID;

CREATE TABLE model_sums (
    series INTEGER NOT NULL,
    span INTEGER NOT NULL,
    start INTEGER NOT NULL,
    model BLOB NOT NULL,
    steps INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    cost INTEGER NOT NULL,
    PRIMARY KEY (series, span, start, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE step_sums (
    series INTEGER NOT NULL,
    span INTEGER NOT NULL,
    start INTEGER NOT NULL,
    name BLOB NOT NULL,
    type BLOB NOT NULL,
    executions INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    timed INTEGER NOT NULL,
    duration INTEGER NOT NULL,
    PRIMARY KEY (series, span, start, name, type)
) STRICT, WITHOUT ROWID;

CREATE TABLE error_sums (
    series INTEGER NOT NULL,
    span INTEGER NOT NULL,
    start INTEGER NOT NULL,
    code BLOB NOT NULL,
    failed_step BLOB NOT NULL,
    runs INTEGER NOT NULL,
    PRIMARY KEY (series, span, start, code, failed_step)
) STRICT, WITHOUT ROWID;
