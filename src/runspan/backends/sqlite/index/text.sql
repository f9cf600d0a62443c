-- The full-text tables, see text.py: how many rows each has had, and whether some of these are of runs that are gone or
-- have changed since. is_left: the other rows are being moved to the second table of the week.
CREATE TABLE text_tables (
    id INTEGER PRIMARY KEY,
    rows INTEGER NOT NULL,
    has_removed INTEGER NOT NULL,
    is_left INTEGER NOT NULL
) STRICT;

-- The runs of their rows.
CREATE TABLE text_rows (id INTEGER PRIMARY KEY, run INTEGER NOT NULL) STRICT;

-- The least and the greatest id of a run in each block of rows: rows are read from the newest on, and mostly, but not
-- always, the runs of older rows are older.
CREATE TABLE text_blocks (block INTEGER PRIMARY KEY, least INTEGER NOT NULL, greatest INTEGER NOT NULL) STRICT;
