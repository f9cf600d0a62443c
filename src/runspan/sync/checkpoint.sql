CREATE TABLE list_positions (
    filter TEXT PRIMARY KEY,
    newest INTEGER NOT NULL,
    full_started INTEGER NOT NULL,
    full_ended INTEGER NOT NULL,
    edge INTEGER NOT NULL,
    full_newest INTEGER NOT NULL,
    cursor TEXT,
    after_page INTEGER NOT NULL
) STRICT;

CREATE TABLE runs (
    run_id TEXT PRIMARY KEY,
    time INTEGER NOT NULL,
    state INTEGER NOT NULL,
    due INTEGER,
    failures INTEGER NOT NULL,
    list_fingerprint BLOB NOT NULL,
    document_fingerprint BLOB NOT NULL,
    sent_digest BLOB NOT NULL,
    sent_revision INTEGER NOT NULL,
    acked_digest BLOB NOT NULL,
    run_span_sent INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    acked_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    workflow TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX runs_by_state ON runs (state, time);
CREATE INDEX runs_new_by_workflow ON runs (workflow, time) WHERE state = 0;
CREATE INDEX runs_known_by_workflow ON runs (workflow, due) WHERE state <> 0 AND due IS NOT NULL;
CREATE INDEX runs_failing ON runs (due) WHERE failures > 0;
CREATE TABLE workers (number INTEGER PRIMARY KEY) STRICT;
CREATE TABLE workflows (workflow TEXT PRIMARY KEY, worker INTEGER) STRICT, WITHOUT ROWID;
CREATE TABLE lists (worker INTEGER, pages INTEGER NOT NULL, wanted INTEGER NOT NULL) STRICT;
INSERT INTO lists VALUES (NULL, 0, 0);
CREATE TABLE requests (
    account BLOB NOT NULL,
    slot INTEGER NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (account, slot)
) STRICT, WITHOUT ROWID;
