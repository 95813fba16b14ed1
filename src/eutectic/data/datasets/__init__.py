"""One file for each data set: its card, and a reader from its native layout."""
