-- What servers share in PostgreSQL: the tables of api_keys.py, sessions.py and usage.py, and the windows of windows.py.

CREATE TABLE keys (
    id text PRIMARY KEY, sha256 bytea NOT NULL UNIQUE, name text NOT NULL, tenant text NOT NULL,
    permissions text NOT NULL, created bigint NOT NULL, expires bigint, revoked bigint
);

CREATE TABLE sessions (
    sha256 bytea PRIMARY KEY, key_id text NOT NULL, created bigint NOT NULL, expires bigint NOT NULL
);
CREATE INDEX sessions_by_key ON sessions (key_id, created);
CREATE INDEX sessions_by_end ON sessions (expires);

-- Each request writes here, and what a crash loses is a minute old at most.
CREATE UNLOGGED TABLE windows (
    client text PRIMARY KEY, requests text NOT NULL, last double precision NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE usage (
    day bigint NOT NULL, tenant text NOT NULL, runs bigint NOT NULL, bytes bigint NOT NULL, PRIMARY KEY (day, tenant)
) WITH (fillfactor = 50);

CREATE TABLE counted_runs (
    day bigint NOT NULL, tenant text NOT NULL, run bytea NOT NULL, PRIMARY KEY (day, tenant, run)
);
