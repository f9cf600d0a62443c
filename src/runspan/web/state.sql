-- What servers share in PostgreSQL: the tables of api_keys.py and sessions.py, and the windows of rate_limits.py.

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
