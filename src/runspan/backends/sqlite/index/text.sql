-- The runs of the rows of the full-text tables, see text.py.
CREATE TABLE text_rows (id INTEGER PRIMARY KEY, run INTEGER NOT NULL) STRICT;

-- The least and the greatest id of a run in each block of rows: rows are read from the newest on, and mostly, but not
-- always, the runs of older rows are older.
CREATE TABLE text_blocks (block INTEGER PRIMARY KEY, least INTEGER NOT NULL, greatest INTEGER NOT NULL) STRICT;
