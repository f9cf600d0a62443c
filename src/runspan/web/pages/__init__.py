"""The pages for people: the runs panel, a run, two runs compared, and the login before them."""
