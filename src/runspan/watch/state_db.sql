CREATE TABLE files (
    name BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    modified INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    inode INTEGER NOT NULL,
    status INTEGER NOT NULL,
    digest BLOB
) STRICT, WITHOUT ROWID;

CREATE INDEX files_failed ON files (status) WHERE status <> 0;

CREATE TABLE runs (
    trace_id BLOB PRIMARY KEY,
    digest BLOB NOT NULL,
    observed_at INTEGER NOT NULL,
    rooted INTEGER NOT NULL,
    open_since INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE versions (
    trace_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    observed_at INTEGER NOT NULL,
    after_root INTEGER NOT NULL,
    acked INTEGER NOT NULL,
    PRIMARY KEY (trace_id, digest)
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_open ON runs (open_since) WHERE open_since IS NOT NULL;
